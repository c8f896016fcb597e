package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
)

// tryFor bounds one attempt at what can be asked of another node: the service's
// queue group may pick a node that hangs.
const tryFor = 4 * time.Second

// Client asks the admin service: that of the node it is connected to, and if
// there is none, that of any. Its errors are *Error, or wrap the context's.
type Client struct {
	Conn *nats.Conn // of user operator; the client does not close it
}

// Status returns the state of the cluster.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	var err error
	for i := range 3 {
		node := "" // the one that is connected to
		if i > 0 {
			node = anyNode
		}
		try, cancel := context.WithTimeout(ctx, tryFor)
		err = c.do(try, node, VerbStatus, request{}, &s)
		cancel()
		var e *Error
		if err == nil || ctx.Err() != nil || errors.As(err, &e) && e.Code != CodeUnknown {
			break
		}
	}
	return s, err
}

// Plan asks what a verb would do to a node.
func (c *Client) Plan(ctx context.Context, verb, node string) (Plan, error) {
	var p Plan
	return p, c.do(ctx, "", verb, request{Node: node}, &p)
}

// Confirm carries out a plan.
func (c *Client) Confirm(ctx context.Context, verb, node, token string) (Result, error) {
	var r Result
	return r, c.do(ctx, "", verb, request{Node: node, Confirm: token}, &r)
}

// StepDown moves the leader of a group, "" being the meta group, or of all
// groups that node leads, if it is not "". to is who should lead next, "" =
// whoever is elected.
func (c *Client) StepDown(ctx context.Context, group, node, to string) (Result, error) {
	var r Result
	return r, c.do(ctx, "", VerbStepDown, request{Group: group, Node: node, To: to}, &r)
}

// Export writes what lasts in the buckets to w and returns the number of bytes.
func (c *Client) Export(ctx context.Context, w io.Writer) (int64, error) {
	var t Transfer
	if err := c.do(ctx, "", VerbExport, request{}, &t); err != nil {
		return 0, err
	}
	body, err := json.Marshal(request{Transfer: t.ID})
	if err != nil {
		return 0, err
	}
	var total int64
	for n := 0; ; n++ {
		msg := chunk(subject(t.Node, verbRead), t.ID, n, body)
		msg.Header.Del(headerTransfer) // the body names it
		m, err := c.chunk(ctx, msg)
		if err != nil {
			return total, err
		}
		k, err := w.Write(m.Data)
		total += int64(k)
		if err != nil {
			return total, fmt.Errorf("write export: %w", err)
		}
		if m.Header.Get(headerEnd) == "true" {
			return total, nil
		}
	}
}

// Import sends what r holds, and has it added to the buckets once it is there
// as a whole.
func (c *Client) Import(ctx context.Context, r io.Reader) (Result, error) {
	var t Transfer
	if err := c.do(ctx, "", verbBegin, request{}, &t); err != nil {
		return Result{}, err
	}
	buf := make([]byte, chunkSize)
	for n := 0; ; n++ {
		k, err := io.ReadFull(r, buf)
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return Result{}, fmt.Errorf("read import: %w", err)
		}
		if k > 0 {
			if _, err := c.chunk(ctx, chunk(subject(t.Node, verbWrite), t.ID, n, buf[:k])); err != nil {
				return Result{}, err
			}
		}
		if last {
			break
		}
	}
	var res Result
	return res, c.do(ctx, t.Node, VerbImport, request{Transfer: t.ID}, &res)
}

// anyNode stands for whichever node answers.
const anyNode = "*"

func subject(node, verb string) string {
	if node == anyNode {
		return Prefix + "." + verb
	}
	return Prefix + "." + Token(node) + "." + verb
}

// chunk tries twice: the node knows a chunk that it has answered already.
func (c *Client) chunk(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	try, cancel := context.WithTimeout(ctx, tryFor)
	defer cancel()
	m, err := c.request(try, msg)
	if err != nil && try.Err() != nil && ctx.Err() == nil {
		m, err = c.request(ctx, msg)
	}
	return m, err
}

func (c *Client) do(ctx context.Context, node, verb string, r request, reply any) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	m, err := c.ask(ctx, node, verb, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(m.Data, reply); err != nil {
		return fmt.Errorf("read the answer to %s: %w", verb, err)
	}
	return nil
}

// ask sends a request to node; "" = to the one that is connected to, which is the
// nearest, does not hang, and goes on seeing the cluster with the same eyes.
func (c *Client) ask(ctx context.Context, node, verb string, body []byte) (*nats.Msg, error) {
	if node != "" {
		return c.request(ctx, &nats.Msg{Subject: subject(node, verb), Data: body})
	}
	if here := c.Conn.ConnectedServerName(); here != "" {
		m, err := c.Conn.RequestWithContext(ctx, subject(here, verb), body)
		if !errors.Is(err, nats.ErrNoResponders) {
			return answered(m, subject(here, verb), err)
		}
	}
	return c.request(ctx, &nats.Msg{Subject: subject(anyNode, verb), Data: body})
}

func (c *Client) request(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	m, err := c.Conn.RequestMsgWithContext(ctx, msg)
	for range 2 { // a node that has just gone may have been picked: nothing was done, so ask again
		if !errors.Is(err, nats.ErrNoResponders) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		m, err = c.Conn.RequestMsgWithContext(ctx, msg)
	}
	return answered(m, msg.Subject, err)
}

// answered turns what came of a request on subject into its answer or an error.
func answered(m *nats.Msg, subject string, err error) (*nats.Msg, error) {
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, errorf(CodeNoQuorum, "ripstop ls --nats URL", "nobody answers as the operator's service: this NATS server is no Ripstop node, or the user is not the operator")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return nil, errorf(CodeUnknown, "ripstop status", "no answer to %s in time: it may have been done, or may not", subject)
	case err != nil:
		return nil, fmt.Errorf("request %s: %w", subject, err)
	}
	if code := m.Header.Get(micro.ErrorCodeHeader); code != "" {
		return nil, &Error{Code: Code(code), Text: m.Header.Get(micro.ErrorHeader), Try: string(m.Data)}
	}
	return m, nil
}
