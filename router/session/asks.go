package session

import (
	"bytes"
	"context"
	"net/http"
	"strconv"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// A server's requests (sampling, elicitation, roots) go to the client under the
// ids that the server gave them, as long as the backend session is the one that
// the client's own initialize opened. In one made anew the server may count from
// the beginning again, while the client still holds requests of the one before:
// there, ids are tagged, so that no answer reaches a question it is not for.

const askPrefix = `"ripstop.`

func tagged(tag uint64, id []byte) []byte {
	out := strconv.AppendUint([]byte(askPrefix), tag, 36)
	out = append(out, '.')
	if id[0] == '"' { // already quoted and escaped
		return append(append(out, 's'), id[1:]...)
	}
	return append(append(append(out, 'n'), id...), '"')
}

// untagged returns the server's own id of a tagged one.
func untagged(tag uint64, id []byte) ([]byte, bool) {
	want := append(strconv.AppendUint([]byte(askPrefix), tag, 36), '.')
	rest, ok := bytes.CutPrefix(id, want)
	if !ok || len(rest) < 2 {
		return nil, false
	}
	if rest[0] == 's' {
		return append([]byte{'"'}, rest[1:]...), true
	}
	return rest[1 : len(rest)-1], rest[0] == 'n'
}

// tagAsk returns a message of the server as the client gets it.
func tagAsk(tag uint64, msg []byte) []byte {
	if tag == 0 || len(msg) == 0 {
		return msg
	}
	m, err := jsonrpc.Parse(msg)
	switch {
	case err != nil:
		return msg
	case m.Kind == jsonrpc.Request:
		return m.Edit(jsonrpc.Edit{ID: tagged(tag, m.ID)})
	case m.CancelID != nil:
		return m.Edit(jsonrpc.Edit{CancelID: tagged(tag, m.CancelID)})
	}
	return msg
}

// asker is the stream of a call in a backend session that was made anew.
type asker struct {
	router.Stream
	tag uint64
}

func (a *asker) Send(ctx context.Context, msg []byte) error {
	return a.Stream.Send(ctx, tagAsk(a.tag, msg))
}

// answer returns the client's answer as the server asked for it, or the reply
// that refuses it. The refusal carries the answer's id, since clients take an
// error without one for the end of the session.
func (l *Layer) answer(u use, m *jsonrpc.Message) (*jsonrpc.Message, *router.Reply) {
	if u.tag == 0 {
		return m, nil
	}
	if id, ok := untagged(u.tag, m.ID); ok {
		if own, err := jsonrpc.Parse(m.Edit(jsonrpc.Edit{ID: id})); err == nil {
			return own, nil
		}
	}
	l.log.Info("answer refused: what asked for it is gone", "session", u.s.id, "id", string(m.ID[:min(len(m.ID), 80)]))
	const text = "nobody waits for this answer: the server's session that asked is gone, and was made anew since; what it worked on has failed, call it again"
	return nil, &router.Reply{Body: jsonrpc.NewError(m.ID, router.CodeRefused, text, nil), Status: http.StatusBadRequest}
}
