package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"

	"github.com/spf13/cobra"

	"ripstop/router"
	"ripstop/router/jsonrpc"
)

func quietLogger() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// bareHandler speaks just enough Streamable HTTP to be called.
func bareHandler(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if r.Method == http.MethodGet {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush() // the client is gone if this fails
		<-r.Context().Done()
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	m, err := jsonrpc.Parse(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if m.Method == "initialize" {
		w.Header().Set("Mcp-Session-Id", router.NewSessionID("bare"))
	}
	answer := bareAnswer(m)
	if answer == nil {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) // the client is gone if this fails
}

func benchHTTPServer(cmd *cobra.Command) error {
	var servers []*http.Server
	failed := make(chan error, 2)
	for _, h := range []http.Handler{benchSDKServer(), http.HandlerFunc(bareHandler)} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(quietLogger().Handler(), slog.LevelError)}
		servers = append(servers, s)
		go func() { failed <- s.Serve(l) }() // ends with Close below
		fmt.Fprintf(cmd.OutOrStdout(), "http://%s/mcp\n", l.Addr())
	}
	var err error
	select {
	case err = <-failed:
	case <-cmd.Context().Done():
	}
	for _, s := range servers {
		err = errors.Join(err, s.Close())
	}
	return err
}
