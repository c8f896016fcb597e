package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"ripstop/e2e/lab"
	"ripstop/router"
	"ripstop/router/jsonrpc"
	"ripstop/router/wire"
)

// kindStdio is a call through `ripstop connect`.
const kindStdio = "stdio"

// probe is a client with one session, which it keeps whatever happens. It makes
// a call again only when it is sure that nothing was executed.
type probe struct {
	kind, name, server string
	ends               bool // its server's sessions end with their process
	l                  *load
	way                way
	process            atomic.Value // string: what executed the last acknowledged call
}

// way is how a probe reaches its session.
type way interface {
	// attempt makes a call once.
	attempt(ctx context.Context, id string) (lab.Outcome, lab.Said, error)
}

// run makes a call every 50 ms until ctx ends.
func (p *probe) run(ctx context.Context, phase time.Duration) {
	slots := inFlight
	if p.ends {
		slots = 1 // how often a session is not known is counted
	}
	p.l.paced(ctx, callEvery, phase, slots, p.call)
}

func (p *probe) call(ctx context.Context, n int) {
	id := fmt.Sprintf("%s-%d", p.name, n)
	end := p.l.h.Begin(p.kind, p.name, p.server, id)
	lost := 0
	for {
		o, said, err := p.way.attempt(ctx, id)
		lost += said.Lost
		said.Lost = lost
		if o == lab.OK {
			p.process.Store(said.Process)
		}
		if o != lab.Refused {
			end(o, said.String(), err)
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			end(lab.Refused, said.String(), err)
			return
		}
	}
}

// pid is the id of the process that has the session, as far as the probe knows.
func (p *probe) pid() int {
	var pid int
	text, _ := p.process.Load().(string)
	fmt.Sscanf(text, "%d.", &pid)
	return pid
}

// judgeProbe reads the outcome of a probe's call.
func judgeProbe(data []byte, id string) (lab.Outcome, lab.Said, error) {
	var m struct {
		Result struct {
			Meta       map[string]json.RawMessage `json:"_meta"`
			Structured struct{ Process string }   `json:"structuredContent"`
		}
		Error struct{ Code int }
	}
	o, err := judgeReply(data, id)
	if json.Unmarshal(data, &m) != nil {
		return lab.Unknown, lab.Said{}, err
	}
	if m.Error.Code == router.CodeSessionNotFound {
		return lab.Refused, lab.Said{Lost: 1}, err
	}
	return o, lab.Said{Process: m.Result.Structured.Process, Anew: string(m.Result.Meta["ripstop/reinitialized"])}, err
}

// httpWay goes to one node after another with the same session.
type httpWay struct{ *httpClient }

func newHTTPWay(l *load, name, server string, urls []string) *httpWay {
	h := &httpClient{l: l, name: name, target: server, urls: urls}
	h.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: inFlight, DialContext: (&net.Dialer{Timeout: 500 * time.Millisecond}).DialContext}}
	return &httpWay{h}
}

// url is the node that the client uses now.
func (h *httpWay) url() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.urls[h.at]
}

// leave goes on to the next node, unless another call has done so.
func (h *httpWay) leave(url string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.urls[h.at] == url {
		h.at = (h.at + 1) % len(h.urls)
	}
}

func (h *httpWay) attempt(ctx context.Context, id string) (lab.Outcome, lab.Said, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	url, session, turn, err := h.open(ctx)
	if err != nil {
		h.leave(url)
		return lab.Refused, lab.Said{}, fmt.Errorf("initialize at %s: %w", url, err)
	}
	status, _, body, err := h.post(ctx, url, session, workBody(id))
	var op *net.OpError
	switch {
	case errors.As(err, &op) && op.Op == "dial":
		h.leave(url)
		return lab.Refused, lab.Said{}, err
	case err != nil:
		h.leave(url)
		return lab.Unknown, lab.Said{}, err
	}
	o, said, err := judgeProbe(body, id)
	switch status {
	case http.StatusNotFound:
		said.Lost = 1
		h.next(turn, false)
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		h.leave(url)
	}
	if err != nil {
		err = fmt.Errorf("%s: %d %w", url, status, err)
	}
	return o, said, err
}

// stdioWay is a client of `ripstop connect`.
type stdioWay struct {
	p  *process
	in io.WriteCloser

	mu      sync.Mutex
	waiting map[string]chan string
}

func newStdioWay(t testing.TB, server string, urls []string) *stdioWay {
	t.Helper()
	cmd := exec.Command(ripstop(t), "connect", server, "--nats", strings.Join(urls, ","))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	w := &stdioWay{p: launch(t, cmd), in: in, waiting: map[string]chan string{}}
	go func() { // ends with the process
		for line := range w.p.lines {
			var m struct{ ID any }
			if json.Unmarshal([]byte(line), &m) != nil || m.ID == nil {
				continue
			}
			w.mu.Lock()
			if c := w.waiting[fmt.Sprint(m.ID)]; c != nil {
				c <- line // holds one, and there is one
				delete(w.waiting, fmt.Sprint(m.ID))
			}
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		w.p.cmd.Process.Kill()
		<-w.p.done
		if t.Failed() {
			t.Logf("ripstop connect %s: %s", server, tail(w.p.stderr.String(), 30))
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if line, err := w.ask(ctx, "init", initialize); err != nil || !strings.Contains(line, `"protocolVersion"`) {
		t.Fatalf("initialize through connect: %s, %v", line, err)
	}
	if _, err := io.WriteString(in, `{"jsonrpc":"2.0","method":"notifications/initialized"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	return w
}

// ask writes a request, whose id is id, and waits for its answer.
func (w *stdioWay) ask(ctx context.Context, id, body string) (string, error) {
	answer := make(chan string, 1)
	w.mu.Lock()
	w.waiting[id] = answer
	_, err := io.WriteString(w.in, body+"\n")
	w.mu.Unlock()
	if err != nil {
		return "", err
	}
	select {
	case line := <-answer:
		return line, nil
	case <-ctx.Done():
		w.mu.Lock()
		delete(w.waiting, id)
		w.mu.Unlock()
		return "", ctx.Err()
	}
}

func (w *stdioWay) attempt(ctx context.Context, id string) (lab.Outcome, lab.Said, error) {
	line, err := w.ask(ctx, id, strings.Replace(workBody(id), `"id":1,`, fmt.Sprintf(`"id":%q,`, id), 1))
	if err != nil {
		return lab.Unknown, lab.Said{}, err
	}
	o, said, err := judgeProbe([]byte(line), id)
	return o, said, err
}

// natsWay is a client that speaks the wire protocol.
type natsWay struct {
	l                        *load
	server, session, version string
	at                       atomic.Pointer[natsLink]
}

// natsLink is a connection of it.
type natsLink struct {
	*wire.Client
	left context.CancelFunc
}

// newNATSWay connects and opens the session.
func newNATSWay(ctx context.Context, t testing.TB, l *load, name, server string, urls []string) *natsWay {
	t.Helper()
	w := &natsWay{l: l, server: server}
	if err := w.connect(ctx, name, urls); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() string {
		reply, err := w.serve(ctx, initialize)
		if err != nil {
			return err.Error()
		}
		w.session, w.version = reply.Session, "2025-11-25"
		return ""
	})
	if _, err := w.serve(ctx, `{"jsonrpc":"2.0","method":"notifications/initialized"}`); err != nil || w.session == "" {
		t.Fatalf("session %q over NATS: %v", w.session, err)
	}
	return w
}

// connect connects to urls[0] first. When that server says that it will shut
// down, the client connects to another, and lets the old connection have its
// replies.
func (w *natsWay) connect(root context.Context, name string, urls []string) error {
	ctx, left := context.WithCancel(root)
	var once sync.Once
	nc, err := dialLoad(urls, nats.Name("probe/"+name), nats.LameDuckModeHandler(func(*nats.Conn) {
		once.Do(func() {
			if ctx.Err() != nil {
				return
			}
			if err := w.connect(root, name, append(append([]string{}, urls[1:]...), urls[0])); err != nil {
				w.l.log("move %s: %v", name, err)
			}
		})
	}))
	if err != nil {
		left()
		return err
	}
	c, err := wire.NewClient(nc)
	if err != nil {
		left()
		nc.Close()
		return err
	}
	if old := w.at.Swap(&natsLink{c, left}); old != nil {
		old.left()
	}
	w.l.wg.Go(func() {
		<-ctx.Done()
		sleepOr(context.WithoutCancel(ctx), opTimeout) // what is in flight
		c.Close()
		nc.Close()
	})
	return nil
}

func (w *natsWay) serve(ctx context.Context, body string) (*router.Reply, error) {
	m, err := jsonrpc.Parse([]byte(body))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return w.at.Load().Serve(ctx, &router.Request{Op: router.OpMessage, Server: w.server, Session: w.session, Version: w.version, Message: m}, router.Discard)
}

func (w *natsWay) attempt(ctx context.Context, id string) (lab.Outcome, lab.Said, error) {
	reply, err := w.serve(ctx, workBody(id))
	var e *router.Error
	switch {
	case errors.As(err, &e):
		reply = router.ErrorReply([]byte("1"), e)
	case err != nil:
		return lab.Unknown, lab.Said{}, err
	}
	return judgeProbe(reply.Body, id)
}
