package stdio_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"ripstop/router/jsonrpc"
	"ripstop/router/stdio"
)

// quirks are the ways in which the fake server misbehaves.
type quirks struct {
	Modern         bool   // speaks 2026-07-28
	ModernOnly     bool   // and nothing else
	IgnoreDiscover bool   // never answers server/discover
	DieOnDiscover  bool   // exits on it
	InitError      bool   // refuses initialize
	InitHang       bool   // never answers initialize
	InitDie        bool   // exits on initialize
	Stay           bool   // does not end when stdin does, nor on SIGTERM
	DieIfExists    string // exits at once if this file exists
	Roots          bool   // asks for the client's roots once initialized
}

// fake is an MCP server, of both eras, as small as it can be.
type fake struct {
	quirks
	out       sync.Mutex
	mu        sync.Mutex
	history   []string // methods received
	cancelled []string // raw ids
	memory    string
	initial   json.RawMessage // params of initialize
	waiting   map[string]chan json.RawMessage
	asked     int
	answers   []string
	stop      map[string]chan struct{}
	listens   map[string]json.RawMessage // modern subscriptions, by raw id
}

type rpc struct {
	JSONRPC string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   json.RawMessage `json:"error,omitempty"`
}

func runFake() {
	f := &fake{waiting: map[string]chan json.RawMessage{}, stop: map[string]chan struct{}{}, listens: map[string]json.RawMessage{}}
	if err := json.Unmarshal([]byte(os.Getenv("STDIO_TEST_QUIRKS")), &f.quirks); err != nil {
		panic(err)
	}
	if f.DieIfExists != "" {
		if _, err := os.Stat(f.DieIfExists); err == nil {
			fmt.Fprintln(os.Stderr, "told not to start")
			os.Exit(4)
		}
	}
	if f.Stay {
		signal.Ignore(syscall.SIGTERM)
	}
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break
		}
		var m rpc
		if err := json.Unmarshal(line, &m); err != nil {
			f.write(`{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"parse error"}}`)
			continue
		}
		f.receive(m)
	}
	if f.Stay {
		select {}
	}
}

func (f *fake) write(line string) {
	f.out.Lock()
	defer f.out.Unlock()
	os.Stdout.WriteString(line + "\n")
}

func (f *fake) reply(id json.RawMessage, result string) {
	f.write(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, id, result))
}

func (f *fake) fail(id json.RawMessage, code int, text string) {
	f.write(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"error":{"code":%d,"message":%q}}`, id, code, text))
}

func (f *fake) text(id json.RawMessage, text string) {
	b, _ := json.Marshal(text)
	f.reply(id, `{"content":[{"type":"text","text":`+string(b)+`}]}`)
}

func (f *fake) receive(m rpc) {
	f.mu.Lock()
	if m.Method != "" {
		f.history = append(f.history, m.Method)
	}
	f.mu.Unlock()
	switch {
	case m.Method == "":
		f.mu.Lock()
		c := f.waiting[string(m.ID)]
		f.mu.Unlock()
		if c != nil {
			if m.Error != nil {
				c <- m.Error
			} else {
				c <- m.Result
			}
		}
	case m.ID == nil:
		f.notified(m)
	case m.Method == "tools/call" && strings.Contains(string(m.Params), `"closestdin"`):
		os.Stdin.Close() // here, where nobody reads it
		f.text(m.ID, "closed")
	case m.Method == "tools/call" && strings.Contains(string(m.Params), `"deaf"`):
		f.text(m.ID, "bye")
		select {} // reads nothing any more
	case m.Method == "tools/call":
		go f.call(m)
	default:
		f.request(m)
	}
}

func (f *fake) notified(m rpc) {
	switch m.Method {
	case "notifications/cancelled":
		var p struct{ RequestID json.RawMessage }
		json.Unmarshal(m.Params, &p)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.cancelled = append(f.cancelled, string(p.RequestID))
		if c := f.stop[string(p.RequestID)]; c != nil {
			close(c)
			delete(f.stop, string(p.RequestID))
		}
		delete(f.listens, string(p.RequestID))
	case "notifications/later": // and in no request
		f.write(`{"jsonrpc":"2.0","method":"notifications/message","params":` + string(m.Params) + `}`)
	case "notifications/flush": // says on stderr when all before has been read
		go func() {
			f.ask("ping", "{}")
			fmt.Fprintln(os.Stderr, "flushed")
		}()
	case "notifications/initialized":
		if f.Roots {
			go f.ask("roots/list", `{}`)
		}
	}
}

func (f *fake) request(m rpc) {
	switch m.Method {
	case "server/discover":
		f.discover(m)
	case "initialize":
		f.initialize(m)
	case "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe":
		f.reply(m.ID, "{}")
	case "subscriptions/listen":
		f.mu.Lock()
		f.listens[string(m.ID)] = m.Params
		f.mu.Unlock()
		f.write(fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":%s},"notifications":{}}}`, m.ID))
	default:
		f.fail(m.ID, -32601, "no such method")
	}
}

func (f *fake) discover(m rpc) {
	switch {
	case f.DieOnDiscover:
		fmt.Fprintln(os.Stderr, "unknown method, giving up")
		os.Exit(5)
	case f.IgnoreDiscover:
	case !f.Modern && !f.ModernOnly:
		f.fail(m.ID, -32601, "no such method")
	default:
		f.reply(m.ID, `{"resultType":"complete","supportedVersions":["2026-07-28","2025-11-25"],"capabilities":{"tools":{}},"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"fake","version":"9"}}}`)
	}
}

func (f *fake) initialize(m rpc) {
	switch {
	case f.InitHang:
	case f.InitDie:
		fmt.Fprintln(os.Stderr, "no licence")
		os.Exit(6)
	case f.InitError, f.ModernOnly:
		f.fail(m.ID, -32602, "not like this")
	default:
		f.initial = m.Params
		f.reply(m.ID, `{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"fake","version":"9"}}`)
	}
}

// ask sends a request to the client and returns the answer.
func (f *fake) ask(method, params string) string {
	f.mu.Lock()
	f.asked++
	id := fmt.Sprint(f.asked)
	c := make(chan json.RawMessage, 1)
	f.waiting[id] = c
	f.mu.Unlock()
	f.write(`{"jsonrpc":"2.0","id":` + id + `,"method":"` + method + `","params":` + params + `}`)
	answer := string(<-c)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers = append(f.answers, answer)
	return answer
}

type callParams struct {
	Name      string
	Arguments struct {
		Text string
		N    int
		URI  string
	}
	Meta struct {
		Token json.RawMessage `json:"progressToken"`
	} `json:"_meta"`
}

func (f *fake) call(m rpc) {
	var p callParams
	if err := json.Unmarshal(m.Params, &p); err != nil {
		f.fail(m.ID, -32602, err.Error())
		return
	}
	a := p.Arguments
	if f.simple(m, p) || f.nasty(m, p) {
		return
	}
	switch p.Name {
	case "progress":
		for i := range a.N {
			f.write(fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s,"progress":%d}}`, p.Meta.Token, i))
		}
		f.text(m.ID, "done")
	case "ask":
		f.text(m.ID, f.ask("elicitation/create", `{"message":`+quote(a.Text)+`}`))
	case "withdraw": // asks, and takes the question back
		f.write(`{"jsonrpc":"2.0","id":"q9","method":"elicitation/create","params":{"message":"never mind"}}`)
		f.write(`{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"q9"}}`)
		f.text(m.ID, "withdrawn")
	case "log":
		for i := range max(a.N, 1) {
			f.write(fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%s%d"}}`, a.Text, i))
		}
		f.text(m.ID, "logged")
	case "changed":
		f.changed(a.URI)
		f.text(m.ID, "told")
	case "endlistens":
		f.mu.Lock()
		for id := range f.listens {
			f.reply(json.RawMessage(id), `{"resultType":"complete","_meta":{"io.modelcontextprotocol/subscriptionId":`+id+`}}`)
		}
		f.mu.Unlock()
		f.text(m.ID, "ended")
	case "wait", "stubborn": // until cancelled
		c := make(chan struct{})
		f.mu.Lock()
		f.stop[string(m.ID)] = c
		f.mu.Unlock()
		f.write(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"waiting"}}`)
		<-c
		if p.Name == "stubborn" {
			f.text(m.ID, "finished all the same")
		}
	default:
		f.fail(m.ID, -32602, "no such tool")
	}
}

// simple answers the tools that do not interact.
func (f *fake) simple(m rpc, p callParams) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch p.Name {
	case "echo":
		f.text(m.ID, p.Arguments.Text)
	case "ids":
		f.text(m.ID, string(m.ID)+" "+string(p.Meta.Token))
	case "params":
		f.text(m.ID, string(m.Params))
	case "initial":
		f.text(m.ID, string(f.initial))
	case "remember":
		f.memory = p.Arguments.Text
		f.text(m.ID, "ok")
	case "recall":
		f.text(m.ID, f.memory)
	case "pid":
		f.text(m.ID, fmt.Sprint(os.Getpid()))
	case "history":
		f.text(m.ID, strings.Join(f.history, " "))
	case "answers":
		f.text(m.ID, strings.Join(f.answers, " "))
	case "cancelled":
		f.text(m.ID, strings.Join(f.cancelled, " "))
	case "big":
		f.text(m.ID, strings.Repeat("x", p.Arguments.N))
	case "size":
		f.text(m.ID, fmt.Sprint(len(p.Arguments.Text)))
	default:
		return false
	}
	return true
}

// nasty answers the tools that misbehave.
func (f *fake) nasty(m rpc, p callParams) bool {
	switch p.Name {
	case "crash":
		fmt.Fprintln(os.Stderr, "boom")
		os.Exit(3)
	case "hang":
		select {}
	case "junk":
		for range 100 {
			f.write("Listening on port 3000")
		}
		f.write("")
		f.write(`[{"jsonrpc":"2.0","id":` + string(m.ID) + `,"result":{"content":[{"type":"text","text":"after junk"}]}}]`)
	case "invalid":
		f.write(`{"jsonrpc":"2.0","id":` + string(m.ID) + `,"result":{"text":"` + "\xff" + `"}}`)
	case "closestdout":
		os.Stdout.Close()
	case "noisy":
		fmt.Fprint(os.Stderr, strings.Repeat("long line ", 10000)+"\n"+strings.Repeat("less long ", 1000)+"\nmiddle line\n")
		fmt.Fprintln(os.Stderr, "short line")
		f.text(m.ID, "ok")
	case "spawn", "orphan":
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STDIO_TEST_ROLE=grandchild")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		fmt.Fprintln(os.Stderr, "grandchild", cmd.Process.Pid)
		if p.Name == "orphan" {
			f.write(fmt.Sprintf(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":%d}}`, cmd.Process.Pid))
			os.Exit(7)
		}
		f.text(m.ID, fmt.Sprint(cmd.Process.Pid))
	default:
		return false
	}
	return true
}

// changed sends the notifications of the era: one, or one for each listener.
func (f *fake) changed(uri string) {
	method, body := "notifications/tools/list_changed", ""
	if uri != "" {
		method, body = "notifications/resources/updated", `"uri":`+quote(uri)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.listens) == 0 {
		f.write(`{"jsonrpc":"2.0","method":"` + method + `","params":{` + body + `}}`)
	}
	for id := range f.listens {
		meta := `"_meta":{"io.modelcontextprotocol/subscriptionId":` + id + `}`
		if body != "" {
			meta += ","
		}
		f.write(`{"jsonrpc":"2.0","method":"` + method + `","params":{` + meta + body + `}}`)
	}
}

func quote(s string) string { return jsonrpc.Quote(s) }

// runGrandchild is a process that only SIGKILL ends.
func runGrandchild() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	time.Sleep(time.Hour)
}

// runAgent holds a session whose child has a child, says so, and waits to be
// killed.
func runAgent() {
	b, err := stdio.New(fakeOptions(quirks{Stay: true}))
	if err != nil {
		panic(err)
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() { // a line is the order for one more session
		c, err := dial(b)
		if err != nil {
			panic(err)
		}
		fmt.Println(c.mustText("pid", ""), c.mustText("spawn", ""))
	}
}
