package bridgetest

//lint:file-ignore SA1019 logging is deprecated in the modern era, but legacy clients use it

import (
	"context"
	"fmt"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// Ask is the schema of what the tool ask wants to know.
var Ask = &jsonschema.Schema{
	Type: "object",
	Properties: map[string]*jsonschema.Schema{
		"name":   {Type: "string", MinLength: jsonschema.Ptr(1)},
		"colour": {Type: "string", Enum: []any{"red", "green"}, Default: []byte(`"green"`)},
		"age":    {Type: "integer", Minimum: jsonschema.Ptr(0.0)},
		"spam":   {Type: "boolean"},
	},
	Required: []string{"name"},
}

// Demo returns a server with the tools echo, add, count (progress), ask
// (elicitation), log, fail and block, and a resource that can be subscribed to.
func Demo() *mcp.Server {
	subscribe := func(context.Context, *mcp.SubscribeRequest) error { return nil }
	unsubscribe := func(context.Context, *mcp.UnsubscribeRequest) error { return nil }
	s := mcp.NewServer(&mcp.Implementation{Name: "demo", Version: "v1"}, &mcp.ServerOptions{
		SubscribeHandler: subscribe, UnsubscribeHandler: unsubscribe,
		Capabilities: &mcp.ServerCapabilities{Logging: &mcp.LoggingCapabilities{}, Tools: &mcp.ToolCapabilities{ListChanged: true}},
	})
	s.AddResource(&mcp.Resource{URI: "demo://r", Name: "r"}, func(context.Context, *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
		return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: "demo://r", Text: "r"}}}, nil
	})
	type echo struct {
		Text string `json:"text" jsonschema:"what to say back"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "echo", Description: "Say it back.\nWord for word."}, func(_ context.Context, _ *mcp.CallToolRequest, in echo) (*mcp.CallToolResult, any, error) {
		return text("%s", in.Text), nil, nil
	})
	type add struct {
		A int     `json:"a"`
		B float64 `json:"b,omitempty"`
	}
	type sum struct {
		Sum float64 `json:"sum"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "add", Description: "Add two numbers"}, func(_ context.Context, _ *mcp.CallToolRequest, in add) (*mcp.CallToolResult, sum, error) {
		return nil, sum{float64(in.A) + in.B}, nil
	})
	type count struct {
		To int `json:"to"`
	}
	mcp.AddTool(s, &mcp.Tool{Name: "count"}, func(ctx context.Context, req *mcp.CallToolRequest, in count) (*mcp.CallToolResult, any, error) {
		for i := range in.To {
			err := req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{
				ProgressToken: req.Params.GetProgressToken(), Progress: float64(i + 1), Total: float64(in.To), Message: fmt.Sprintf("at %d", i+1),
			})
			if err != nil {
				return nil, nil, err
			}
		}
		return text("counted to %d", in.To), nil, nil
	})
	mcp.AddTool(s, &mcp.Tool{Name: "ask"}, ask)
	mcp.AddTool(s, &mcp.Tool{Name: "log"}, func(ctx context.Context, req *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		err := req.Session.Log(ctx, &mcp.LoggingMessageParams{Level: "warning", Logger: "demo", Data: "beware"})
		return text("logged"), nil, err
	})
	mcp.AddTool(s, &mcp.Tool{Name: "fail"}, func(context.Context, *mcp.CallToolRequest, struct{}) (*mcp.CallToolResult, any, error) {
		return nil, nil, fmt.Errorf("it broke")
	})
	mcp.AddTool(s, &mcp.Tool{Name: "block"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(time.Minute):
			return text("nobody cancelled"), nil, nil
		}
	})
	return s
}

func text(format string, args ...any) *mcp.CallToolResult {
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.TextContent{Text: fmt.Sprintf(format, args...)}}}
}

func ask(_ context.Context, req *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, any, error) {
	answer, ok := req.Params.InputResponses["who"].(*mcp.ElicitResult)
	if !ok {
		return &mcp.CallToolResult{InputRequests: mcp.InputRequestMap{
			"who": &mcp.ElicitParams{Mode: "form", Message: "Who are you?", RequestedSchema: Ask},
		}}, nil, nil
	}
	if answer.Action != "accept" {
		return text("you chose to %s", answer.Action), nil, nil
	}
	return text("hello %v, %v, %v, %v", answer.Content["name"], answer.Content["colour"], answer.Content["age"], answer.Content["spam"]), nil, nil
}
