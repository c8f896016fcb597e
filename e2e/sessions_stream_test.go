package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// streamEnv, set, makes the test binary an MCP server on stdio with two tools:
// "count" sends numbered notifications, as progress of the call or, told to, as
// log messages after it; "ask" asks the client and returns its answer.
const streamEnv = "RIPSTOP_E2E_STREAM"

// streamServer is that server.
type streamServer struct {
	mu      sync.Mutex // of standard output, and answers
	answers map[string]chan json.RawMessage
}

type streamMessage struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params struct {
		Version string `json:"protocolVersion"`
		Name    string `json:"name"`
		Data    any    `json:"data"`
		Meta    struct {
			Token json.RawMessage `json:"progressToken"`
		} `json:"_meta"`
		Progress  int `json:"progress"`
		Arguments struct {
			To     int  `json:"to"`
			Millis int  `json:"millis"`
			Later  bool `json:"later"`
		} `json:"arguments"`
	} `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  json.RawMessage `json:"error"`
}

func runStreamServer() int {
	s := &streamServer{answers: map[string]chan json.RawMessage{}}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var m streamMessage
		if json.Unmarshal(in.Bytes(), &m) != nil || m.ID == nil {
			continue
		}
		switch m.Method {
		case "":
			s.mu.Lock()
			c := s.answers[string(m.ID)]
			s.mu.Unlock()
			if c != nil {
				c <- m.Result
			}
		case "initialize":
			s.say(`"id":%s,"result":{"protocolVersion":%q,"capabilities":{"tools":{},"logging":{}},"serverInfo":{"name":"stream","version":"1"}}`, m.ID, m.Params.Version)
		case "tools/list":
			s.say(`"id":%s,"result":{"tools":[{"name":"count","inputSchema":{"type":"object"}},{"name":"ask","inputSchema":{"type":"object"}}]}`, m.ID)
		case "tools/call":
			go s.call(m)
		default:
			s.say(`"id":%s,"result":{}`, m.ID)
		}
	}
	return 0
}

func (s *streamServer) say(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Printf(`{"jsonrpc":"2.0",`+format+"}\n", args...)
}

func (s *streamServer) call(m streamMessage) {
	text := "counted"
	args := m.Params.Arguments
	if m.Params.Name == "ask" {
		c := make(chan json.RawMessage, 1)
		s.mu.Lock()
		s.answers[`"q1"`] = c
		s.mu.Unlock()
		s.say(`"id":"q1","method":"elicitation/create","params":{"message":"well?","requestedSchema":{"type":"object","properties":{}}}`)
		text = string(<-c)
	}
	if args.Later {
		s.say(`"id":%s,"result":{"content":[{"type":"text","text":"later"}]}`, m.ID)
	}
	for n := 1; n <= args.To; n++ {
		if args.Later {
			s.say(`"method":"notifications/message","params":{"level":"error","data":%d}`, n)
		} else {
			s.say(`"method":"notifications/progress","params":{"progressToken":%s,"progress":%d}`, m.Params.Meta.Token, n)
		}
		time.Sleep(time.Duration(args.Millis) * time.Millisecond)
	}
	if !args.Later {
		s.say(`"id":%s,"result":{"content":[{"type":"text","text":%q}]}`, m.ID, text)
	}
}

// resumer is a client that takes one stream from whichever node there is.
type resumer struct {
	t       testing.TB
	c       *cluster
	session string
	retry   bool // a node said how soon to come back

	mu   sync.Mutex
	at   int    // the node it uses now
	last string // event id
}

func (r *resumer) node() *member { r.mu.Lock(); defer r.mu.Unlock(); return r.c.members[r.at] }

func (r *resumer) next() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = (r.at + 1) % len(r.c.members)
}

func (r *resumer) request(ctx context.Context, method, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.node().http+"/mcp/stream", strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	req.Header.Set("MCP-Protocol-Version", "2025-11-25")
	if r.session != "" {
		req.Header.Set("Mcp-Session-Id", r.session)
	}
	if method == "GET" && r.last != "" {
		req.Header.Set("Last-Event-ID", r.last)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err == nil && resp.StatusCode >= 300 {
		data, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		return nil, fmt.Errorf("%s at %s: %d %s", method, r.node().name, resp.StatusCode, data)
	}
	return resp, err
}

var errEnough = errors.New("enough")

// follow takes the stream that a request opens, and comes back for the rest until
// take has enough.
func (r *resumer) follow(ctx context.Context, method, body string, take func(m streamMessage) error) error {
	resp, err := r.request(ctx, method, body)
	if err != nil {
		return err
	}
	for {
		err := r.read(resp.Body, take)
		resp.Body.Close()
		if err == errEnough {
			return nil
		}
		if err != nil {
			return err
		}
		for {
			r.next()
			if resp, err = r.request(ctx, "GET", ""); err == nil {
				break
			}
			if ctx.Err() != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond) // sooner than told, so that the node's death is news
		}
	}
}

// read takes events until the stream ends or take has enough.
func (r *resumer) read(body io.Reader, take func(m streamMessage) error) error {
	in := bufio.NewScanner(body)
	in.Buffer(nil, 1<<20)
	id, data := "", ""
	for in.Scan() {
		line := in.Text()
		name, value, _ := strings.Cut(line, ": ")
		switch {
		case name == "id":
			id = value
		case name == "retry":
			r.retry = true
		case name == "data":
			data = value
		case line == "":
			if id != "" {
				r.last = id
			}
			if data != "" {
				var m streamMessage
				if err := json.Unmarshal([]byte(data), &m); err != nil {
					return fmt.Errorf("%q: %w", data, err)
				}
				if err := take(m); err != nil {
					return err
				}
			}
			id, data = "", ""
		}
	}
	return nil // however it ended
}

// streamLab is a cluster with a server whose agent no kill of a node reaches.
func streamLab(t *testing.T) *cluster {
	t.Helper()
	if !all() {
		t.Skip("kills nodes for half a minute; run it with RIPSTOP_E2E=all go test -run TestStreams ./e2e")
	}
	c := startCluster(t, clusterOptions{nodes: 3, args: []string{"--demo=false"}})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var urls []string
	for _, m := range c.members {
		urls = append(urls, "nats://"+m.nats)
	}
	p := start(t, ripstop(t), "serve", "stream", "--nats", strings.Join(urls, ","), "--", "/usr/bin/env", streamEnv+"=1", exe)
	p.expect(t, "Attached as instance", 20*time.Second)
	for _, m := range c.members {
		m.node().probed(t, "stream")
	}
	return c
}

// streamClient opens a session at the i-th node.
func streamClient(t *testing.T, ctx context.Context, c *cluster, i int) *resumer {
	t.Helper()
	r := &resumer{t: t, c: c, at: i}
	resp, err := r.request(ctx, "POST", `{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{"elicitation":{}},"clientInfo":{"name":"e2e","version":"1"}}}`)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	r.session = resp.Header.Get("Mcp-Session-Id")
	if resp, err = r.request(ctx, "POST", `{"jsonrpc":"2.0","method":"notifications/initialized"}`); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return r
}

// TestStreams: a client whose node is killed over and over, and then stopped in
// order, comes back at another, and gets every message once and in order.
func TestStreams(t *testing.T) {
	const total, kills, stops = 1000, 5, 2
	c := streamLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for _, later := range []bool{false, true} {
		t.Run(map[bool]string{false: "of a call", true: "the session's own"}[later], func(t *testing.T) {
			r := streamClient(t, ctx, c, 0)
			body := fmt.Sprintf(`{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"count","arguments":{"to":%d,"millis":10,"later":%v},"_meta":{"progressToken":"p"}}}`, total, later)
			method := "POST"
			if later {
				resp, err := r.request(ctx, "POST", body)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				method, body = "GET", ""
			}
			var down *member
			got, killed := 0, 0
			killer := make(chan *member, 1)
			up := make(chan struct{}, 1)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for n := 1; ; n++ {
					m, ok := <-killer
					if !ok {
						return
					}
					if n <= kills {
						c.kill(m)
					} else {
						c.stop(m)
					}
					c.start(m)
					c.awaitReady(m)
					up <- struct{}{}
				}
			}()
			take := func(m streamMessage) error {
				if m.Method == "" {
					if got != total || m.Error != nil {
						return fmt.Errorf("after %d messages: %s %s", got, m.Result, m.Error)
					}
					return errEnough
				}
				n := m.Params.Progress
				if later {
					f, _ := m.Params.Data.(float64)
					n = int(f)
				}
				if n != got+1 {
					return fmt.Errorf("message %d after %d", n, got)
				}
				got = n
				if later && got == total {
					return errEnough
				}
				if killed < kills+stops && got >= 50+killed*total/(kills+stops+1) {
					if down != nil {
						select { // the cluster needs its quorum
						case <-up:
						case <-ctx.Done():
							return ctx.Err()
						}
					}
					down = r.node()
					killer <- down
					killed++
				}
				return nil
			}
			err := r.follow(ctx, method, body, take)
			close(killer)
			<-done
			if err != nil || killed != kills+stops || !r.retry {
				t.Errorf("%d messages, %d kills and stops, told when to come back: %v; %v", got, killed, r.retry, err)
			}
		})
	}
	t.Run("asked", func(t *testing.T) {
		r := streamClient(t, ctx, c, 1)
		asked, answered := r.node(), false
		err := r.follow(ctx, "POST", `{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"ask","arguments":{}}}`, func(m streamMessage) error {
			switch {
			case m.Method == "elicitation/create" && !answered:
				answered = true
				c.kill(asked)
				r.next()
				for { // until it is taken: while the agent connects again, nobody may be there to take it
					resp, err := r.request(ctx, "POST", fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":{"action":"accept","content":{"word":"yes"}}}`, m.ID))
					if err != nil {
						return err
					}
					resp.Body.Close()
					switch resp.StatusCode {
					case http.StatusAccepted:
						return nil
					case http.StatusServiceUnavailable:
						t.Log("the answer was not taken at once")
					default:
						return fmt.Errorf("the answer: %s", resp.Status)
					}
				}
			case m.Method == "" && strings.Contains(string(m.Result), `yes`):
				return errEnough
			}
			return fmt.Errorf("got %+v", m)
		})
		if err != nil || !answered {
			t.Errorf("asked: %v; %v", answered, err)
		}
	})
}
