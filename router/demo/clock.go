package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// clock is the resource that changes by itself. Its timer runs only while
// someone is subscribed.
type clock struct {
	server *mcp.Server
	every  time.Duration

	mu       sync.Mutex
	watchers map[*mcp.ServerSession]bool
	ticking  bool
}

func (c *clock) read(_ context.Context, req *mcp.ReadResourceRequest) (*mcp.ReadResourceResult, error) {
	return text(req.Params.URI, time.Now().UTC().Format(time.RFC3339Nano)), nil
}

func (c *clock) subscribe(_ context.Context, req *mcp.SubscribeRequest) error {
	if req.Params.URI != clockURI {
		return invalidParams(fmt.Sprintf("%q never changes; %s can be subscribed to", req.Params.URI, clockURI))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers[req.Session] = true
	if !c.ticking {
		c.ticking = true
		time.AfterFunc(c.every, c.tick)
	}
	return nil
}

func (c *clock) unsubscribe(_ context.Context, req *mcp.UnsubscribeRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.watchers, req.Session)
	return nil
}

// tick tells the subscribers, and stops when there are none left. A session
// that ends does not unsubscribe, so the list is held against the sessions
// there are.
func (c *clock) tick() {
	live := liveSessions(c.server)
	c.mu.Lock()
	for s := range c.watchers {
		if !live[s] {
			delete(c.watchers, s)
		}
	}
	c.ticking = len(c.watchers) > 0
	again := c.ticking
	c.mu.Unlock()
	if !again {
		return
	}
	// Its error is always nil: a subscriber that can't be told is logged.
	_ = c.server.ResourceUpdated(context.Background(), &mcp.ResourceUpdatedNotificationParams{URI: clockURI})
	time.AfterFunc(c.every, c.tick)
}

func liveSessions(s *mcp.Server) map[*mcp.ServerSession]bool {
	live := map[*mcp.ServerSession]bool{}
	for ss := range s.Sessions() {
		live[ss] = true
	}
	return live
}
