// Package demo is the MCP server that a fresh node comes with: something real
// to call, of every kind that MCP knows, in both protocol eras. It is made with
// the official Go SDK like any other server, and attached like one.
package demo

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const (
	clockURI         = "demo://clock"
	greetingTemplate = "demo://greeting/{name}"
	greetingPrefix   = "demo://greeting/"
)

const instructions = `A server to try things with. echo, add and now answer at once; count is slow, reports progress and can be cancelled; ask puts a question to the user; remember and recall keep values in the session. ` + clockURI + ` can be subscribed to.`

// New returns the demo server. A nil logger logs nothing. The server holds no
// goroutine while nobody is connected.
func New(logger *slog.Logger) *mcp.Server {
	c := &clock{every: 2 * time.Second, watchers: map[*mcp.ServerSession]bool{}}
	s := mcp.NewServer(&mcp.Implementation{Name: "ripstop-demo", Title: "Ripstop demo", Version: "1.0.0"}, &mcp.ServerOptions{
		Instructions:       instructions,
		Logger:             quiet(logger),
		Capabilities:       &mcp.ServerCapabilities{}, // the SDK adds what is used, and would add logging
		SubscribeHandler:   c.subscribe,
		UnsubscribeHandler: c.unsubscribe,
		CompletionHandler:  complete,
	})
	c.server = s
	addTools(s)
	addMemory(s)
	s.AddResource(&mcp.Resource{
		URI: clockURI, Name: "clock", Title: "Clock", MIMEType: "text/plain",
		Description: "The time of this server. Updated every two seconds while someone is subscribed.",
	}, c.read)
	s.AddResourceTemplate(&mcp.ResourceTemplate{
		URITemplate: greetingTemplate, Name: "greeting", Title: "Greeting", MIMEType: "text/plain",
		Description: "A greeting for whoever is named in the URI.",
	}, greet)
	s.AddPrompt(&mcp.Prompt{
		Name: "haiku", Title: "Write a haiku", Description: "Asks for a haiku about a topic.",
		Arguments: []*mcp.PromptArgument{{Name: "topic", Title: "Topic", Description: "What the haiku is about.", Required: true}},
	}, haiku)
	return s
}

func greet(_ context.Context, req *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
	uri := req.Params.URI
	name, err := url.PathUnescape(strings.TrimPrefix(uri, greetingPrefix))
	if err != nil || name == "" {
		return nil, mcp.ResourceNotFoundError(uri)
	}
	return text(uri, "Hello, "+name+"!"), nil
}

func haiku(_ context.Context, req *mcp.GetPromptRequest) (*mcp.GetPromptResult, error) {
	topic := strings.TrimSpace(req.Params.Arguments["topic"])
	if topic == "" {
		return nil, invalidParams("the prompt haiku needs the argument topic")
	}
	return &mcp.GetPromptResult{
		Description: "A haiku about " + topic,
		Messages: []*mcp.PromptMessage{{Role: "user", Content: &mcp.TextContent{
			Text: fmt.Sprintf("Write a haiku about %s: three lines of 5, 7 and 5 syllables, nothing else.", topic),
		}}},
	}, nil
}

var (
	topics = []string{"autumn rain", "cloth that does not tear", "clusters", "failover", "quorum", "the sea", "winter"}
	names  = []string{"Ada", "Alan", "Barbara", "Edsger", "Grace", "Leslie", "Nancy"}
)

func complete(_ context.Context, req *mcp.CompleteRequest) (*mcp.CompleteResult, error) {
	ref, arg := req.Params.Ref, req.Params.Argument
	var from []string
	switch {
	case ref.Type == "ref/prompt" && ref.Name == "haiku" && arg.Name == "topic":
		from = topics
	case ref.Type == "ref/resource" && ref.URI == greetingTemplate && arg.Name == "name":
		from = names
	default:
		return nil, invalidParams("nothing to complete: the prompt haiku has the argument topic, the template " + greetingTemplate + " has name")
	}
	values := []string{} // never null
	for _, v := range from {
		if strings.HasPrefix(strings.ToLower(v), strings.ToLower(arg.Value)) {
			values = append(values, v)
		}
	}
	return &mcp.CompleteResult{Completion: mcp.CompletionResultDetails{Values: values, Total: len(values)}}, nil
}

func text(uri, content string) *mcp.ReadResourceResult {
	return &mcp.ReadResourceResult{Contents: []*mcp.ResourceContents{{URI: uri, MIMEType: "text/plain", Text: content}}}
}
