package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// printResult prints a tool's result for a person: text as it is, other content
// by what it is, and structured content where there is nothing else. raw is the
// result as it came.
func printResult(w io.Writer, res *mcp.CallToolResult, raw []byte) error {
	var b strings.Builder
	for _, c := range res.Content {
		text := contentText(c)
		b.WriteString(text)
		if !strings.HasSuffix(text, "\n") {
			b.WriteByte('\n')
		}
	}
	if len(res.Content) == 0 {
		var r struct {
			StructuredContent json.RawMessage `json:"structuredContent"`
		}
		if json.Unmarshal(raw, &r) == nil && len(r.StructuredContent) > 0 {
			b.WriteString(indented(r.StructuredContent) + "\n")
		}
	}
	text := b.String()
	if isTerminal(w) {
		text = printable(text)
	}
	_, err := io.WriteString(w, text)
	return err
}

func contentText(c mcp.Content) string {
	switch c := c.(type) {
	case *mcp.TextContent:
		return c.Text
	case *mcp.ImageContent:
		return fmt.Sprintf("[image: %s, %d bytes]", c.MIMEType, len(c.Data))
	case *mcp.AudioContent:
		return fmt.Sprintf("[audio: %s, %d bytes]", c.MIMEType, len(c.Data))
	case *mcp.ResourceLink:
		return strings.TrimSpace(fmt.Sprintf("[resource: %s] %s", c.URI, c.Name))
	case *mcp.EmbeddedResource:
		switch {
		case c.Resource == nil:
			return "[resource]"
		case c.Resource.Blob != nil:
			return fmt.Sprintf("[resource: %s, %s, %d bytes]", c.Resource.URI, c.Resource.MIMEType, len(c.Resource.Blob))
		}
		return c.Resource.Text
	}
	return fmt.Sprintf("[%T]", c)
}

// indented returns raw JSON with white space added, its values untouched.
func indented(raw []byte) string {
	var b bytes.Buffer
	if json.Indent(&b, raw, "", "  ") != nil {
		return string(raw)
	}
	return b.String()
}
