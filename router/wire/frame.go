package wire

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// Headers of wire v1. NATS header names are case-sensitive.
const (
	hdrAccept    = "Mcp-Accept"           // "frames": the caller takes more than one reply
	hdrRequest   = "Mcp-Request"          // the request's token on control subjects, 8-64 of A-Z a-z 0-9 - _
	hdrSession   = "Mcp-Session-Id"       // request: the session; reply: the session it opened
	hdrVersion   = "Mcp-Protocol-Version" // as in HTTP
	hdrEpoch     = "Mcp-Session-Epoch"    // edges and relays only, on instance subjects: of the session, as far as the sender knows
	hdrStreamID  = "Mcp-Stream-Id"        // of a legacy call whose messages may be asked for again; 8-64 of A-Z a-z 0-9 - _
	hdrEvent     = "Mcp-Event-Id"         // frame: the event id of its message
	hdrLastEvent = "Last-Event-Id"        // on _listen
	hdrParam     = "Mcp-Param-"           // as in HTTP
	hdrFrame     = "Mcp-Frame"            // reply: msg, end, err, alive
	hdrStatus    = "Mcp-Status"           // reply: the HTTP status it deserves
	hdrStream    = "Mcp-Stream"           // reply: "1": the server answered with an event stream
	hdrInstance  = "Mcp-Instance"         // reply: who answers
	hdrControl   = "Mcp-Control"          // control: cancel, keep
	hdrEra       = "Mcp-Era"              // edge only, on instance subjects: the era the edge decided
	hdrPrincipal = "Mcp-Principal"        // edge only, on instance subjects: who the caller is
)

// Values of Mcp-Frame.
const (
	frameMsg   = "msg"   // a message before the reply
	frameEnd   = "end"   // the reply
	frameErr   = "err"   // the reply, a failure of the fabric
	frameAlive = "alive" // nothing yet; the instance is at work
)

// Values of Mcp-Control.
const (
	controlCancel = "cancel"
	controlKeep   = "keep"
	controlProbe  = "probe"
	controlAgain  = "again" // on a probe: the one before was not answered
)

// encodeRequest builds the NATS message of req. token names it on the control
// subject.
func encodeRequest(req *router.Request, token, reply string) (*nats.Msg, error) {
	subject, err := RequestSubject(req)
	if err != nil {
		return nil, err
	}
	h := nats.Header{hdrAccept: {"frames"}, hdrRequest: {token}}
	set := func(key, value string) {
		if value != "" {
			h[key] = []string{value}
		}
	}
	set(hdrSession, req.Session)
	set(hdrVersion, req.Version)
	set(hdrStreamID, req.StreamID)
	set(hdrLastEvent, req.LastEventID)
	if req.Instance != "" {
		if req.Epoch != 0 {
			h[hdrEpoch] = []string{strconv.FormatUint(req.Epoch, 10)}
		}
		set(hdrEra, req.Era.String())
		set(hdrPrincipal, req.Principal)
	}
	for k, v := range req.Params {
		set(k, v)
	}
	msg := &nats.Msg{Subject: subject, Reply: reply, Header: h}
	if req.Message != nil {
		msg.Data = req.Message.Raw
	}
	return msg, nil
}

// Inbound is a request as an instance received it.
type Inbound struct {
	router.Request
	Token  string // "" = the caller can't control it
	Frames bool   // the caller takes frames before the reply
}

// Decode reads a request addressed to an instance of server. The error is a
// *router.Error or a *jsonrpc.ParseError, to be sent back as it is.
//
// The body is authoritative. A subject other than the one the body demands is
// refused, because permissions are granted by subject.
func Decode(msg *nats.Msg, server, instance string) (*Inbound, error) {
	in := &Inbound{Request: router.Request{Server: server}}
	tail, direct := strings.CutPrefix(msg.Subject, prefixInstance+server+"."+instance+".")
	if !direct {
		tail = strings.TrimPrefix(msg.Subject, prefixRequest+server+".")
	}
	in.headers(msg.Header, direct)
	if direct {
		in.Instance = instance
	}
	switch tail {
	case tokenListen:
		in.Op = router.OpListen
		in.Era = router.EraLegacy
		return in, in.needSession(tail)
	case tokenEnd:
		in.Op = router.OpEnd
		in.Era = router.EraLegacy
		return in, in.needSession(tail)
	}
	m, err := jsonrpc.Parse(msg.Data)
	if err != nil {
		return in, err
	}
	in.Message = m
	want, err := operation(&in.Request)
	if err != nil {
		return in, err
	}
	if tail != want {
		return in, router.Errorf(router.ErrRefused,
			"subject and body disagree: the subject ends in %q, but this message belongs on %q", clip(tail), clip(prefixRequest+server+"."+want))
	}
	if !direct || msg.Header.Get(hdrEra) == "" {
		in.Era = in.era()
	}
	return in, nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// headers takes what the headers say. Identity counts only on instance
// subjects, which only an edge may publish.
func (in *Inbound) headers(h nats.Header, direct bool) {
	if len(h) == 0 {
		return
	}
	in.Frames = h.Get(hdrAccept) == "frames"
	if t := h.Get(hdrRequest); validToken(t) {
		in.Token = t
	}
	in.Session = h.Get(hdrSession)
	in.Version = h.Get(hdrVersion)
	in.LastEventID = h.Get(hdrLastEvent)
	if id := h.Get(hdrStreamID); validToken(id) {
		in.StreamID = id
	}
	for k, v := range h {
		if strings.HasPrefix(k, hdrParam) && len(v) > 0 {
			if in.Params == nil {
				in.Params = map[string]string{}
			}
			in.Params[k] = v[0]
		}
	}
	if direct {
		in.Principal = h.Get(hdrPrincipal)
		in.Epoch, _ = strconv.ParseUint(h.Get(hdrEpoch), 10, 64) // else unknown
		switch h.Get(hdrEra) {
		case "modern":
			in.Era = router.EraModern
		case "bare":
			in.Era = router.EraBare
		}
	}
}

// era decides a request's era as docs/wire.md says: modern by its metadata,
// legacy by its session or by being the start of one, else bare.
func (in *Inbound) era() router.Era {
	switch m := in.Message; {
	case m.HasVersion:
		return router.EraModern
	case in.Session != "" || m.Method == "initialize":
		return router.EraLegacy
	case m.Kind != jsonrpc.Request && in.Version >= router.Version20260728:
		return router.EraModern
	}
	return router.EraBare
}

func (in *Inbound) needSession(op string) error {
	if in.Session == "" {
		return router.Errorf(router.ErrRefused, "%s needs the header %s", op, hdrSession)
	}
	return nil
}

func validToken(t string) bool {
	if len(t) < 8 || len(t) > 64 {
		return false
	}
	for i := range len(t) {
		if !literal(t[i], 1) {
			return false
		}
	}
	return true
}

// ReplyMsg builds the last frame of a request: "end", or "err" for a failure of
// the fabric.
func ReplyMsg(to, instance string, r *router.Reply, failed bool) *nats.Msg {
	frame := frameEnd
	if failed {
		frame = frameErr
	}
	h := nats.Header{hdrFrame: {frame}, hdrInstance: {instance}}
	if r.Status != 0 && r.Status != 200 {
		h[hdrStatus] = []string{strconv.Itoa(r.Status)}
	}
	if r.Stream {
		h[hdrStream] = []string{"1"}
	}
	if r.Session != "" {
		h[hdrSession] = []string{r.Session}
	}
	if r.EventID != "" {
		h[hdrEvent] = []string{r.EventID}
	}
	return &nats.Msg{Subject: to, Header: h, Data: r.Body}
}

// StreamMsg builds a "msg" frame, with the message's event id if it has one.
func StreamMsg(to, instance, event string, body []byte) *nats.Msg {
	return frame(to, frameMsg, instance, event, body)
}

// AliveMsg builds an "alive" frame, with the event id that stands before the
// stream's first message if it has one.
func AliveMsg(to, instance, event string) *nats.Msg {
	return frame(to, frameAlive, instance, event, nil)
}

func frame(to, kind, instance, event string, body []byte) *nats.Msg {
	h := nats.Header{hdrFrame: {kind}, hdrInstance: {instance}}
	if event != "" {
		h[hdrEvent] = []string{event}
	}
	return &nats.Msg{Subject: to, Header: h, Data: body}
}

// Control is what a control message asks of a request.
type Control uint8

// The control messages.
const (
	ControlNone   Control = iota // not a control message this version knows
	ControlCancel                // stop working on it
	ControlKeep                  // the caller is still there
	ControlProbe                 // say alive now, on the reply subject
)

// DecodeControl returns the request token and what is asked of it.
func DecodeControl(msg *nats.Msg) (token string, c Control) {
	token = msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:]
	switch msg.Header.Get(hdrControl) {
	case controlCancel:
		return token, ControlCancel
	case controlKeep:
		return token, ControlKeep
	case controlProbe:
		return token, ControlProbe
	}
	return token, ControlNone
}

// IsProbe reports whether a message asks an instance only whether it is there,
// and whether it has been asked before in vain: then others may have its sessions.
func IsProbe(msg *nats.Msg) (is, again bool) {
	if !strings.HasSuffix(msg.Subject, "."+tokenProbe) { // no name is encoded so
		return false, false
	}
	return true, msg.Header.Get(hdrControl) == controlAgain
}

// fabricError returns the error of an "err" frame that is not for the client
// yet: the instance executed nothing, since it drains, is full or does not have
// the session, and another may; or it does not know the outcome, and the call may be one to be sent again.
// Else nil: what was said is for the client.
func fabricError(msg *nats.Msg) *router.Error {
	switch msg.Header.Get(hdrStatus) {
	case "503", "429", "421", "":
	default:
		return nil
	}
	var body struct {
		Error struct {
			Code    int
			Message string
			Data    json.RawMessage
		}
	}
	if json.Unmarshal(msg.Data, &body) != nil {
		return nil
	}
	kind := router.ErrUnavailable
	switch body.Error.Code {
	case router.CodeOverloaded:
		kind = router.ErrOverloaded
	case router.CodeMoved:
		kind = router.ErrMoved
	case router.CodeOutcomeUnknown:
		kind = router.ErrOutcomeUnknown
	case router.CodeUnavailable:
	default:
		return nil
	}
	e := *kind
	e.Text, e.Data, e.Stream = body.Error.Message, body.Error.Data, msg.Header.Get(hdrStream) == "1"
	return &e
}

// decodeReply reads an "end" or "err" frame, or the plain reply of a responder
// that sets no headers.
func decodeReply(msg *nats.Msg) *router.Reply {
	r := &router.Reply{Session: msg.Header.Get(hdrSession), Stream: msg.Header.Get(hdrStream) == "1", EventID: msg.Header.Get(hdrEvent)}
	if len(msg.Data) > 0 {
		r.Body = msg.Data
	}
	if s := msg.Header.Get(hdrStatus); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 200 && n <= 599 {
			r.Status = n
		}
	}
	return r
}
