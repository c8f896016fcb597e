package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/sdkclient"
)

// clientSettings say how a command reaches the fabric.
type clientSettings struct {
	URLs  string // NATS URLs, separated by commas
	Token string // "" = none
	credentials
}

// fabricClient is the fabric as the client commands need it.
type fabricClient interface {
	router.Handler

	// Instances returns the registry. Errors are *router.Error, or say that
	// the fabric can't be reached.
	Instances(ctx context.Context) ([]kv.Instance, error)

	// Close ends the connection.
	Close()
}

// dialFunc connects to the fabric.
type dialFunc func(ctx context.Context, s clientSettings) (fabricClient, error)

// addClientFlags defines how a command reaches the fabric.
func addClientFlags(cmd *cobra.Command) {
	cmd.Flags().String("nats", defaultNATS, "NATS URLs of the fabric, separated by commas ("+envName("nats")+")")
	addCredentialFlags(cmd)
}

// clientSettingsOf reads the flags of addClientFlags.
func clientSettingsOf(cmd *cobra.Command) (clientSettings, error) {
	if err := flagsFromEnv(cmd); err != nil { // completion comes without PersistentPreRun
		return clientSettings{}, err
	}
	s := clientSettings{URLs: cmd.Flag("nats").Value.String()}
	return s, s.readCredentials(cmd)
}

// notFromEnv annotates flags that must be typed: one left in the environment
// would confirm what nobody has read.
const notFromEnv = "ripstop_not_from_env"

// flagsFromEnv gives every flag that was not set the value of RIPSTOP_<FLAG>.
// The settings of a node are left to viper, which reads a file besides.
func flagsFromEnv(cmd *cobra.Command) error {
	var failed error
	ofNode := cmd.Flags().Lookup("config") != nil
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value, ok := os.LookupEnv(envName(f.Name))
		isSetting := slices.ContainsFunc(nodeSettingsList, func(s setting) bool { return s.key == f.Name })
		switch {
		case !ok || f.Changed || failed != nil, f.Name == "help", f.Name == "version", f.Annotations[notFromEnv] != nil, ofNode && (isSetting || f.Name == "config"):
			return
		}
		if err := cmd.Flags().Set(f.Name, value); err != nil {
			failed = usagef("%s in the environment: %w", envName(f.Name), err)
		}
	})
	return failed
}

// addTimeout defines --timeout.
func addTimeout(cmd *cobra.Command, standard time.Duration) {
	cmd.Flags().Duration("timeout", standard, "give up after this long; 0 = never ("+envName("timeout")+")")
}

// withTimeout returns cmd's context, bounded by --timeout.
func withTimeout(cmd *cobra.Command) (context.Context, context.CancelFunc, error) {
	d, err := cmd.Flags().GetDuration("timeout")
	switch {
	case err != nil:
		return nil, nil, err
	case d < 0:
		return nil, nil, usagef("--timeout %s is negative", d)
	case d == 0:
		ctx, cancel := context.WithCancel(cmd.Context())
		return ctx, cancel, nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), d)
	return ctx, cancel, nil
}

// connect dials the fabric as cmd's flags say.
func connect(ctx context.Context, cmd *cobra.Command, dial dialFunc) (fabricClient, error) {
	s, err := clientSettingsOf(cmd)
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, s)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, explain("the fabric at "+s.URLs, ctx.Err())
	case err != nil && s.explainTLS(err) != nil:
		return nil, s.explainTLS(err)
	case err != nil && refusesToken(err):
		why, try := "it wants a token", "--token-file FILE, with the token that the node was started with"
		if s.Token != "" {
			why = "it refuses the token of --token-file"
		}
		return nil, &failure{code: exitUnreachable, what: "the fabric at " + s.URLs, why: why, try: try}
	case err != nil:
		return nil, &failure{code: exitUnreachable, what: "the fabric can't be reached", why: err.Error(), try: "ripstop start"}
	}
	return c, nil
}

// refusesToken says whether err is a NATS server's refusal of credentials. While
// it connects, nats.go passes the server's words on as a text.
func refusesToken(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || strings.Contains(strings.ToLower(err.Error()), nats.AUTHORIZATION_ERR)
}

// open starts an MCP session with a server of the fabric.
func open(ctx context.Context, c fabricClient, h router.Handler, server string, opts *mcp.ClientOptions) (*mcp.ClientSession, error) {
	if err := router.CheckServerName(server); err != nil {
		return nil, usageError(err)
	}
	if opts.Capabilities == nil {
		opts.Capabilities = &mcp.ClientCapabilities{} // a command line has no roots
	}
	client := mcp.NewClient(&mcp.Implementation{Name: "ripstop", Version: buildVersion()}, opts)
	s, err := client.Connect(ctx, sdkclient.Transport(h, server), nil)
	if err != nil {
		return nil, suggestServer(ctx, c, server, explain("server "+quote(server), err))
	}
	return s, nil
}

// suggestServer adds to "not found" what was probably meant.
func suggestServer(ctx context.Context, c fabricClient, server string, err error) error {
	f, ok := err.(*failure)
	if !ok || f.code != exitNotFound {
		return err
	}
	instances, listErr := c.Instances(ctx)
	if listErr != nil {
		return err
	}
	f.why = "no such server is attached" + didYouMean(server, serverNames(instances))
	return f
}

func serverNames(instances []kv.Instance) []string {
	var names []string
	for _, i := range instances {
		names = append(names, i.Server)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// listTools returns all of a server's tools, in its order.
func listTools(ctx context.Context, s *mcp.ClientSession, server string) ([]*mcp.Tool, error) {
	tools := []*mcp.Tool{}
	for tool, err := range s.Tools(ctx, nil) {
		if err != nil {
			return nil, explain("tools of "+quote(server), err)
		}
		tools = append(tools, tool)
	}
	return tools, nil
}

// findTool returns the tool of that name.
func findTool(tools []*mcp.Tool, server, name string) (*mcp.Tool, error) {
	var names []string
	for _, t := range tools {
		if t.Name == name {
			return t, nil
		}
		names = append(names, t.Name)
	}
	return nil, &failure{code: exitNotFound, what: "tool " + quote(name), why: "server " + quote(server) + " has no such tool" + didYouMean(name, names), try: "ripstop tools " + server}
}

func quote(s string) string { return `"` + s + `"` }
