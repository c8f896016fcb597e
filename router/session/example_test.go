package session_test

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/kv"
	"ripstop/router/session"
)

// A tool that counts how often it was called in its session, wherever the session
// was by then.
func ExampleDataFrom() {
	server := mcp.NewServer(&mcp.Implementation{Name: "counter", Version: "1"}, nil)
	type count struct {
		Calls int `json:"calls"`
	}
	mcp.AddTool(server, &mcp.Tool{Name: "count"}, func(ctx context.Context, _ *mcp.CallToolRequest, _ any) (*mcp.CallToolResult, count, error) {
		var n count
		data, ok := session.DataFrom(ctx)
		if !ok {
			return nil, n, errors.New("there is no session to count in")
		}
		for {
			n = count{}
			old, err := data.Get(ctx, "calls") // revision 0 if there is none
			if err == nil {
				err = json.Unmarshal(old.Value, &n)
			}
			if err != nil && !errors.Is(err, kv.ErrNotFound) {
				return nil, n, err
			}
			n.Calls++
			value, err := json.Marshal(n)
			if err != nil {
				return nil, n, err
			}
			if _, err = data.Put(ctx, "calls", value, old.Rev); !errors.Is(err, kv.ErrConflict) {
				return nil, n, err // it is counted, or not known to be
			}
		}
	})
	// Attach the server with router/gosdk and router/agent.
}
