package fabric

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nats-io/nats-server/v2/server"
)

// User is one more user of account MCP, besides the built-in roles.
type User struct {
	Name      string // letters, digits, '-' and '_', and no role's name
	Token     string // password
	Publish   []string
	Subscribe []string // beyond its inboxes, which are below InboxPrefix
}

// InboxPrefix is what a user's inboxes begin with. Nobody else but the node may
// read there: the built-in roles share the other inboxes (rolesMayRead).
func InboxPrefix(user string) string { return usersInboxes + user }

const usersInboxes = "_INBOX.user."

// rolesMayRead is the permission to subscribe these subjects, and inboxes but
// those of users. It takes a denial, since nats-server lets "_INBOX.>" through
// where "_INBOX.*" is allowed.
func rolesMayRead(subjects ...string) m {
	return m{"allow": append(subjects, "_INBOX.>"), "deny": usersInboxes + ">"}
}

// reserved are the users the fabric has itself.
var reserved = []string{userSystem, userFabric, userEdge, roleClient, roleAgent, roleOperator}

// CheckUsers refuses users whose names mean another, or whose permissions would
// reach further than they say.
func CheckUsers(users []User) error {
	for _, u := range users {
		if slices.Contains(reserved, u.Name) {
			return fmt.Errorf("user name %q is one of the fabric's own (%s); choose another", u.Name, strings.Join(reserved, ", "))
		}
		if u.Name == "" || strings.ContainsAny(u.Name, ".*> \t") {
			return fmt.Errorf("user name %q can't stand in a subject; use letters, digits, '-' and '_'", u.Name)
		}
		if u.Token == "" {
			return fmt.Errorf("user %s has no token", u.Name)
		}
	}
	return nil
}

func usersConfig(users []User) []any {
	var out []any
	for _, u := range users {
		out = append(out, m{"user": u.Name, "password": u.Token, "permissions": m{
			"publish": u.Publish, "subscribe": append(slices.Clone(u.Subscribe), InboxPrefix(u.Name)+".>"),
		}})
	}
	return out
}

// parse makes options of the part of the configuration that Options fields
// can't say.
func (n *Node) parse(tokens Tokens, users []User) (*server.Options, error) {
	var text strings.Builder // the configuration language takes JSON, but for \u escapes
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	if err := CheckUsers(users); err != nil {
		return nil, err
	}
	so := &server.Options{}
	if err := errors.Join(enc.Encode(n.accounts(tokens, users)), so.ProcessConfigString(text.String())); err != nil {
		return nil, fmt.Errorf("configure NATS server: %w", err)
	}
	return so, nil
}

// logins decides who may connect. nats-server could itself, but to change a
// password there is to end every connection made with the old one; here a
// change counts for new connections.
//
// It takes over after NewServer has read the same users from its options: so
// that nats-server too knows them, and doesn't take a connection for one whose
// user is gone when it reloads (server/reload.go, clientHasMovedToDifferentAccount).
// A user added while the server runs has to reconnect after such a reload.
type logins struct {
	srv   *server.Server
	stamp string // the password of a connection that was let in, should nats-server ask again
	now   atomic.Pointer[userTable]
}

// userTable is who may connect, by name.
type userTable struct {
	users map[string]*server.User // one without a password needs none
	open  string                  // the user of those who present nothing; "" = they are refused
}

var _ server.Authentication = (*logins)(nil)

func newLogins(srv *server.Server, so *server.Options) *logins {
	l := &logins{srv: srv, stamp: rand.Text()}
	l.now.Store(tableOf(so))
	return l
}

func tableOf(so *server.Options) *userTable {
	t := &userTable{users: map[string]*server.User{}, open: so.NoAuthUser}
	for _, u := range so.Users {
		t.users[u.Username] = u
	}
	return t
}

// Check lets a client in, as one of the users.
func (l *logins) Check(c server.ClientAuthentication) bool {
	if c.Kind() != server.CLIENT {
		return false
	}
	t := l.now.Load()
	given := c.GetOpts()
	u := t.find(given)
	if u == nil {
		return false
	}
	if u.Password != "" && !same(given.Password, u.Password) && !same(given.Token, u.Password) && !same(given.Password, l.stamp) {
		return false
	}
	account, err := l.srv.LookupAccount(u.Account.Name) // not u's own: a reload replaces it
	if err != nil {
		return false
	}
	c.RegisterUser(&server.User{Username: u.Username, Account: account, Permissions: u.Permissions})
	given.Password, given.Token = l.stamp, ""
	return l.now.Load() == t // else use may have missed this one
}

// find returns whom a client says it is, or nil. A token alone names its user,
// as it does for HTTP clients.
func (t *userTable) find(given *server.ClientOpts) *server.User {
	switch {
	case given.Username != "":
		return t.users[given.Username]
	case given.Token != "":
		if u := t.users[roleClient]; u != nil && same(given.Token, u.Password) {
			return u
		}
		for _, u := range t.users {
			if u.Account.Name == accountMCP && same(given.Token, u.Password) {
				return u
			}
		}
		return nil
	}
	return t.users[t.open]
}

// same compares in constant time.
func same(given, want string) bool {
	return subtle.ConstantTimeCompare([]byte(given), []byte(want)) == 1
}

// use replaces the users, and ends the connections of those who are gone or may
// do something else from now on.
func (l *logins) use(next *userTable) error {
	last := l.now.Swap(next)
	var errs []error
	for name, u := range last.users {
		if n := next.users[name]; n == nil || !reflect.DeepEqual(n.Permissions, u.Permissions) {
			errs = append(errs, l.disconnect(u))
		}
	}
	return errors.Join(errs...)
}

func (l *logins) disconnect(u *server.User) error {
	z, err := l.srv.Connz(&server.ConnzOptions{Username: true, User: u.Username, Account: u.Account.Name, State: server.ConnOpen, Limit: 1 << 30})
	if err != nil {
		return fmt.Errorf("disconnect user %s: %w", u.Username, err)
	}
	for _, c := range z.Conns {
		_ = l.srv.DisconnectClientByID(c.Cid) // fails when it is gone already
	}
	return nil
}
