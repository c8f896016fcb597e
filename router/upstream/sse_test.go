package upstream_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"ripstop/router/upstream"
)

func TestEvents(t *testing.T) {
	type E = upstream.Event
	for _, tt := range []struct {
		name, in string
		want     []E
	}{
		{"one", "data: a\n\n", []E{{"a", "", ""}}},
		{"no space", "data:a\n\n", []E{{"a", "", ""}}},
		{"one space only", "data:  a \n\n", []E{{" a ", "", ""}}},
		{"crlf", "data: a\r\n\r\ndata: b\r\n\r\n", []E{{"a", "", ""}, {"b", "", ""}}},
		{"cr", "data: a\r\rdata: b\r\r", []E{{"a", "", ""}, {"b", "", ""}}},
		{"mixed", "data: a\rdata: b\ndata: c\r\n\n", []E{{"a\nb\nc", "", ""}}},
		{"lines", "data: {\ndata: }\n\n", []E{{"{\n}", "", ""}}},
		{"empty line of data", "data: a\ndata\ndata:\n\n", []E{{"a\n\n", "", ""}}},
		{"colon in data", "data: a:b\n\n", []E{{"a:b", "", ""}}},
		{"comment", ": hello\n:\ndata: a\n: x\n\n", []E{{"a", "", ""}}},
		{"unknown field", "foo: 1\ndatum: 2\ndata: a\nverylongfieldnamethatnobodyknows: 1\n\n", []E{{"a", "", ""}}},
		{"bom", "\xef\xbb\xbfdata: a\n\n", []E{{"a", "", ""}}},
		{"bom once", "\xef\xbb\xbf\n\xef\xbb\xbfdata: a\n\ndata: b\n\n", []E{{"b", "", ""}}},
		{"bom then comment", "\xef\xbb\xbf: x\ndata: a\n\n", []E{{"a", "", ""}}},
		{"name", "event: message\ndata: a\n\nevent: ping\ndata: b\n\ndata: c\n\n", []E{{"a", "message", ""}, {"b", "ping", ""}, {"c", "", ""}}},
		{"id stays", "id: 1\ndata: a\n\ndata: b\n\n", []E{{"a", "", "1"}, {"b", "", "1"}}},
		{"id without data", "id: 1\n\ndata: b\n\n", []E{{"b", "", "1"}}},
		{"id emptied", "id: 1\ndata: a\n\nid\ndata: b\n\n", []E{{"a", "", "1"}, {"b", "", ""}}},
		{"id with NUL", "id: 1\ndata: a\n\nid: 2\x00\ndata: b\n\n", []E{{"a", "", "1"}, {"b", "", "1"}}},
		{"name without data", "event: x\n\ndata: a\n\n", []E{{"a", "", ""}}},
		{"cut off", "data: a\n\ndata: b\n", []E{{"a", "", ""}}},
		{"cut off in a line", "data: a\n\ndata: b", []E{{"a", "", ""}}},
		{"case matters", "Data: a\nDATA: b\n\n", nil},
		{"long id", "id: " + strings.Repeat("x", 5000) + "\ndata: a\n\n", []E{{"a", "", ""}}},
		{"nothing", "", nil},
		{"blank lines", "\n\n\r\n\r\r", nil},
	} {
		for _, size := range []int{1, 2, 7, 4096} {
			got, _, err := upstream.Events(strings.NewReader(tt.in), size)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%s, buffer of %d: got %q, %v, want %q", tt.name, size, got, err, tt.want)
			}
		}
	}
}

func TestEventRetry(t *testing.T) {
	for in, want := range map[string]int64{
		"retry: 1500\n\n": 1500, "retry: 1500\n": 1500, "retry: x\n\n": 0, "retry: 1.5\n\n": 0, "retry: -1\n\n": 0,
		"retry: 99999999999999999999\n\n": 0, "retry\n\n": 0, "retry: 1\nretry: 2\n\n": 2,
	} {
		if _, got, err := upstream.Events(strings.NewReader(in), 16); got != want || err != nil {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
}

// TestEventAtOnce checks that an event is there with the first byte that ends
// it, though a CR may be half of a CRLF.
func TestEventAtOnce(t *testing.T) {
	r, w := io.Pipe()
	defer r.Close()
	got := make(chan upstream.Event, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		upstream.StreamEvents(r, func(e upstream.Event) { got <- e })
	}()
	for _, in := range []string{"data: a\n\n", "data: b\r\n\r", "\ndata: c\r\r"} {
		io.WriteString(w, in)
		e := <-got
		if want := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(in), "data: ")); e.Data != want {
			t.Errorf("got %q, want %q", e.Data, want)
		}
	}
	w.Close()
	<-done
}

func TestEventTooLarge(t *testing.T) {
	huge := io.MultiReader(strings.NewReader("data: "), io.LimitReader(endless('x'), 20<<20), strings.NewReader("\n\n"))
	if _, _, err := upstream.Events(huge, 4096); err == nil {
		t.Error("took an event of 20 MiB")
	}
	comments := io.MultiReader(strings.NewReader(": "), io.LimitReader(endless('x'), 20<<20), strings.NewReader("\ndata: a\n\n"))
	if got, _, err := upstream.Events(comments, 4096); err != nil || len(got) != 1 {
		t.Errorf("after a long comment: %v, %v", got, err)
	}
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

func TestEventReadError(t *testing.T) {
	got, _, err := upstream.Events(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("data: a\n\n"))), 16)
	if err != iotest.ErrTimeout || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

// FuzzEvents holds the reader, fed in random pieces, against the standard's own
// algorithm on the whole text.
func FuzzEvents(f *testing.F) {
	for _, s := range []string{
		"data: a\n\n", "\xef\xbb\xbfid: 1\r\ndata: a\rdata: b\n\r\nretry: 5\n: c\n\n", "event\ndata\n\nid\n\n", "data:\n\n\n", "id: \x00\ndata: x\n\n",
	} {
		f.Add([]byte(s), uint64(1))
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		want := reference(in)
		got, _, err := upstream.Events(&pieces{in, rand.New(rand.NewPCG(seed, 0))}, 1+int(seed%100))
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q:\n got %q, %v\nwant %q", in, got, err, want)
		}
	})
}

// pieces reads in pieces of random size.
type pieces struct {
	rest []byte
	rand *rand.Rand
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:1+p.rand.IntN(len(p.rest))])
	p.rest = p.rest[n:]
	return n, nil
}

// reference is "Interpreting an event stream" of the HTML standard, literally.
func reference(in []byte) (out []upstream.Event) {
	in = bytes.TrimPrefix(in, []byte("\xef\xbb\xbf"))
	in = bytes.ReplaceAll(in, []byte("\r\n"), []byte("\n"))
	in = bytes.ReplaceAll(in, []byte("\r"), []byte("\n"))
	lines := strings.Split(string(in), "\n")
	var data, name, idBuffer string
	for _, line := range lines[:len(lines)-1] { // what has no line end is not a line
		if line == "" {
			if data != "" && data != "\n" { // no MCP message is empty
				out = append(out, upstream.Event{Data: strings.TrimSuffix(data, "\n"), Name: name, LastID: idBuffer})
			}
			data, name = "", ""
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case len(value) > 4<<10 && field != "data":
		case field == "data":
			data += value + "\n"
		case field == "event":
			name = value
		case field == "id" && !strings.Contains(value, "\x00"):
			idBuffer = value
		case field == "retry":
			_, _ = strconv.Atoi(value) // tested apart
		}
	}
	return out
}
