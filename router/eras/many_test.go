package eras_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"ripstop/router"
	"ripstop/router/eras"
	"ripstop/router/sdkclient"
)

// TestManyAtOnce has many clients of the missing era asked at once, and some of
// their calls cancelled; each gets its own answers, and nothing is left.
func TestManyAtOnce(t *testing.T) {
	for era, version := range map[string]string{"legacy": router.Version20260728, "modern": router.Version20251125} {
		t.Run(era+" server", func(t *testing.T) {
			noLeak(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			b := wrapped(t, "http", era, eras.Options{})
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					if err := askOften(ctx, b, version, fmt.Sprint("client ", i)); err != nil {
						t.Errorf("client %d: %v", i, err)
					}
				})
			}
			wg.Wait()
		})
	}
}

func askOften(ctx context.Context, b router.Backend, version, name string) error {
	asked := make(chan struct{}, 100)
	c := mcp.NewClient(&mcp.Implementation{Name: "many", Version: "1"}, &mcp.ClientOptions{
		ElicitationHandler: func(context.Context, *mcp.ElicitRequest) (*mcp.ElicitResult, error) {
			asked <- struct{}{}
			return &mcp.ElicitResult{Action: "accept", Content: map[string]any{"name": name}}, nil
		},
	})
	cs, err := c.Connect(ctx, sdkclient.Transport(b, "s"), &mcp.ClientSessionOptions{ProtocolVersion: version})
	if err != nil {
		return err
	}
	defer cs.Close()
	for range 5 {
		if err := callTool(ctx, cs, "ask", "x", "accept "+name); err != nil {
			return err
		}
		<-asked
		hung, stop := context.WithCancel(ctx)
		go func() { // the client gives up while it is asked
			<-asked
			stop()
		}()
		if err := callTool(hung, cs, "ask", "x", "accept "+name); err != nil && !errors.Is(err, context.Canceled) {
			stop()
			return err
		}
		stop()
	}
	return nil
}
