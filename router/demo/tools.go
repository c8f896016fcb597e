package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/jsonrpc"
	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
)

type echoIn struct {
	Text string `json:"text" jsonschema:"the text to return"`
}

type addIn struct {
	A float64 `json:"a" jsonschema:"the first number"`
	B float64 `json:"b" jsonschema:"the second number"`
}

type addOut struct {
	Sum float64 `json:"sum"`
}

type nowOut struct {
	Time string `json:"time" jsonschema:"RFC 3339, UTC"`
	Unix int64  `json:"unix" jsonschema:"seconds since 1970"`
}

type countIn struct {
	To      int `json:"to" jsonschema:"the number to count to"`
	DelayMS int `json:"delay_ms,omitempty" jsonschema:"milliseconds before each number"`
}

type countOut struct {
	Counted int `json:"counted"`
}

type askIn struct {
	Question string `json:"question" jsonschema:"the question to put to the user"`
}

type askOut struct {
	Action string `json:"action" jsonschema:"accept, decline or cancel: what the user did"`
	Answer string `json:"answer,omitempty"`
}

func addTools(s *mcp.Server) {
	pure := &mcp.ToolAnnotations{ReadOnlyHint: true, IdempotentHint: true, OpenWorldHint: new(false)}
	varies := &mcp.ToolAnnotations{ReadOnlyHint: true, OpenWorldHint: new(false)}
	mcp.AddTool(s, &mcp.Tool{Name: "echo", Title: "Echo", Description: "Returns the text it is given.", Annotations: pure}, echo)
	mcp.AddTool(s, &mcp.Tool{Name: "add", Title: "Add", Description: "Adds two numbers.", Annotations: pure}, add)
	mcp.AddTool(s, &mcp.Tool{Name: "now", Title: "Now", Description: "Returns the time of this server.", Annotations: varies}, now)
	mcp.AddTool(s, &mcp.Tool{
		Name: "count", Title: "Count slowly", InputSchema: countSchema(), Annotations: pure,
		Description: "Counts, with a pause before each number. Reports progress if asked to, and stops when cancelled.",
	}, count)
	mcp.AddTool(s, &mcp.Tool{
		Name: "ask", Title: "Ask the user", Annotations: varies,
		Description: "Puts a question to the user through the client (elicitation) and returns the answer.",
	}, ask)
}

func echo(_ context.Context, _ *mcp.CallToolRequest, in echoIn) (*mcp.CallToolResult, any, error) {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: in.Text}}}, nil, nil
}

func add(_ context.Context, _ *mcp.CallToolRequest, in addIn) (*mcp.CallToolResult, addOut, error) {
	sum := in.A + in.B
	if math.IsInf(sum, 0) {
		return nil, addOut{}, fmt.Errorf("%g + %g is more than a float64 holds", in.A, in.B)
	}
	return nil, addOut{Sum: sum}, nil
}

func now(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, nowOut, error) {
	t := time.Now().UTC()
	return nil, nowOut{Time: t.Format(time.RFC3339Nano), Unix: t.Unix()}, nil
}

// countSchema bounds a call to a little over a quarter of an hour.
func countSchema() *jsonschema.Schema {
	s, err := jsonschema.For[countIn](nil)
	if err != nil {
		panic(err) // the type above has a schema
	}
	to, delay := s.Properties["to"], s.Properties["delay_ms"]
	to.Minimum, to.Maximum = new(1.0), new(1000.0)
	delay.Minimum, delay.Maximum, delay.Default = new(0.0), new(1000.0), json.RawMessage("100")
	return s
}

func count(ctx context.Context, req *mcp.CallToolRequest, in countIn) (*mcp.CallToolResult, countOut, error) {
	token := req.Params.GetProgressToken()
	tick := time.NewTimer(0)
	defer tick.Stop()
	for i := 1; i <= in.To; i++ {
		tick.Reset(time.Duration(in.DelayMS) * time.Millisecond)
		select {
		case <-ctx.Done():
			return nil, countOut{}, fmt.Errorf("cancelled after counting to %d", i-1)
		case <-tick.C:
		}
		if token == nil {
			continue
		}
		err := req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
			ProgressToken: token, Progress: float64(i), Total: float64(in.To), Message: fmt.Sprintf("%d of %d", i, in.To),
		})
		if err != nil && ctx.Err() == nil {
			return nil, countOut{}, fmt.Errorf("report progress: %w", err)
		}
	}
	return nil, countOut{Counted: in.To}, nil
}

// answerSchema is the form the user fills in.
var answerSchema = &jsonschema.Schema{
	Type:       "object",
	Properties: map[string]*jsonschema.Schema{"answer": {Type: "string", Title: "Answer"}},
	Required:   []string{"answer"},
}

// ask works in both eras by one path: it returns a request for input, which the
// SDK passes on to a modern client, and which it turns into elicitation/create
// for a legacy one. Either way the handler runs again with the response.
func ask(_ context.Context, req *mcp.CallToolRequest, in askIn) (*mcp.CallToolResult, *askOut, error) {
	if r, ok := req.Params.InputResponses["answer"].(*mcp.ElicitResult); ok {
		out := &askOut{Action: r.Action}
		if r.Action == "accept" {
			out.Answer, _ = r.Content["answer"].(string)
		}
		return nil, out, nil
	}
	if c := req.ClientCapabilities(); c == nil || c.Elicitation == nil {
		return nil, nil, errCantAsk(req)
	}
	return &mcp.CallToolResult{InputRequests: mcp.InputRequestMap{
		"answer": &mcp.ElicitParams{Mode: "form", Message: in.Question, RequestedSchema: answerSchema},
	}}, nil, nil
}

func errCantAsk(req *mcp.CallToolRequest) error {
	const why = "this client can't be asked: it does not declare the elicitation capability"
	if req.ProtocolVersion() < router.Version20260728 {
		return fmt.Errorf("%s when it initializes", why)
	}
	return &jsonrpc.Error{
		Code: mcp.CodeMissingRequiredClientCapabilities, Message: why + " in the request",
		Data: json.RawMessage(`{"requiredCapabilities":{"elicitation":{}}}`),
	}
}
