package router_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ripstop/kv"
	"ripstop/router"
	"ripstop/router/jsonrpc"
)

// registry is a Directory of one server, "s".
type registry struct {
	mu   sync.Mutex
	list []*kv.Instance
}

func (r *registry) Instances(server string) []*kv.Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	if server != "s" {
		return nil
	}
	return r.list
}

func (r *registry) Servers() []string { return []string{"s"} }

func (r *registry) set(list ...*kv.Instance) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *kv.Instance) int { return strings.Compare(a.Instance, b.Instance) })
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = list
}

// id makes the n-th instance id.
func id(n int) string {
	s := []byte("aaaaaaaaaa")
	for i := 9; n > 0; i-- {
		s[i] = byte('a' + n%26)
		n /= 26
	}
	return string(s)
}

func on(node string, n int, more ...func(*kv.Instance)) *kv.Instance {
	i := &kv.Instance{Server: "s", Instance: id(n), Node: node, Wire: 1}
	for _, f := range more {
		f(i)
	}
	return i
}

func eras(list ...string) func(*kv.Instance) {
	return func(i *kv.Instance) { i.Eras = list }
}

type healthy map[string]bool

func (h healthy) Healthy(node string) bool { return h[node] }

// fleet answers for instances elsewhere: each call notes who got it, and ends
// with what behave says.
type fleet struct {
	mu     sync.Mutex
	calls  map[string]int
	order  []string
	behave func(instance string) error
}

func (f *fleet) Serve(_ context.Context, req *router.Request, _ router.Stream) (*router.Reply, error) {
	if req.Method() == "tools/list" { // whether a call may be executed twice
		return &router.Reply{Body: []byte(`{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"safe","annotations":{"idempotentHint":true}},{"name":"x"}]}}`)}, nil
	}
	f.mu.Lock()
	if f.calls == nil {
		f.calls = map[string]int{}
	}
	f.calls[req.Instance]++
	f.order = append(f.order, req.Instance)
	f.mu.Unlock()
	if f.behave != nil {
		if err := f.behave(req.Instance); err != nil {
			return nil, err
		}
	}
	return &router.Reply{Body: []byte(`{}`)}, nil
}

func (f *fleet) total() int {
	n := 0
	for _, c := range f.calls {
		n += c
	}
	return n
}

func request(era router.Era) *router.Request {
	m, err := jsonrpc.Parse([]byte(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}`))
	if err != nil {
		panic(err)
	}
	return &router.Request{Server: "s", Era: era, Message: m}
}

func call(t testing.TB, r *router.Router) error {
	t.Helper()
	_, err := r.Serve(t.Context(), request(router.EraBare), router.Discard)
	return err
}

func TestNearIsPreferred(t *testing.T) {
	var dir registry
	var far fleet
	dir.set(on("n1", 1), on("n1", 2), on("n2", 3), on("n3", 4))
	r := router.NewRouter(&dir, &far, router.RouterOptions{Node: "n1"})
	for range 50 {
		if err := call(t, r); err != nil {
			t.Fatal(err)
		}
	}
	if got := far.calls[id(1)] + far.calls[id(2)]; got != 50 {
		t.Errorf("%d of 50 calls went to instances of this node: %v", got, far.calls)
	}
	here := 0
	detach := r.Attach(id(2), router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
		here++
		return &router.Reply{}, nil
	}))
	for range 50 {
		call(t, r)
	}
	if here != 50 {
		t.Errorf("%d of 50 calls went to the instance in process", here)
	}
	detach()
	call(t, r)
	if here != 50 || far.total() != 51 {
		t.Errorf("after detach: %d in process, %d elsewhere", here, far.total())
	}
}

// TestNearIsNoQueue: an instance of this node that has more in flight than its
// share lets others have some.
func TestNearIsNoQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dir registry
		far := &fleet{behave: func(string) error { time.Sleep(100 * time.Millisecond); return nil }}
		dir.set(on("n1", 1), on("n2", 2), on("n3", 3))
		r := router.NewRouter(&dir, far, router.RouterOptions{Node: "n1"})
		var wg sync.WaitGroup
		for range 90 {
			wg.Go(func() { call(t, r) })
			synctest.Wait()
		}
		wg.Wait()
		for i := 1; i <= 3; i++ {
			if n := far.calls[id(i)]; n < 25 || n > 40 {
				t.Errorf("instance %d got %d of 90 calls at once, want about a third", i, n)
			}
		}
	})
}

func TestEraCountsBeforePlace(t *testing.T) {
	var dir registry
	var far fleet
	dir.set(on("n1", 1, eras("legacy")), on("n2", 2, eras("modern")), on("n2", 3, eras("legacy", "modern")),
		on("n1", 4, eras("modern"), func(i *kv.Instance) { i.Problem = "does not start" }))
	r := router.NewRouter(&dir, &far, router.RouterOptions{Node: "n1"})
	for range 40 {
		if _, err := r.Serve(t.Context(), request(router.EraModern), router.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if far.calls[id(1)] != 0 || far.calls[id(4)] != 0 || far.calls[id(2)] == 0 || far.calls[id(3)] == 0 {
		t.Errorf("calls of the modern era went to %v, want instances 2 and 3", far.calls)
	}
	dir.set(on("n1", 1, eras("legacy")))
	if _, err := r.Serve(t.Context(), request(router.EraModern), router.Discard); err != nil {
		t.Errorf("an instance of the other era is better than none: %v", err)
	}
}

func TestNodesThatTakeNoWork(t *testing.T) {
	var dir registry
	var far fleet
	nodes := healthy{"n1": true, "n3": true}
	dir.set(on("n2", 1), on("n2", 2), on("n2", 3), on("n3", 4))
	r := router.NewRouter(&dir, &far, router.RouterOptions{Node: "n1", Nodes: nodes})
	for range 50 {
		call(t, r)
	}
	if far.calls[id(4)] != 50 {
		t.Errorf("calls went to %v, want all to instance 4", far.calls)
	}
	delete(nodes, "n3")
	if err := call(t, r); err != nil {
		t.Errorf("an unhealthy node is better than none: %v", err)
	}
}

// TestSlowIsAvoidedAndTriedAgain: latency counts, and is forgotten.
func TestSlowIsAvoidedAndTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dir registry
		slow := true
		far := &fleet{behave: func(i string) error {
			if i == id(1) && slow {
				time.Sleep(500 * time.Millisecond)
			} else {
				time.Sleep(5 * time.Millisecond)
			}
			return nil
		}}
		dir.set(on("n2", 1), on("n2", 2))
		r := router.NewRouter(&dir, far, router.RouterOptions{Node: "n1"})
		for range 200 {
			call(t, r)
		}
		if n := far.calls[id(1)]; n == 0 || n > 5 {
			t.Errorf("the slow instance got %d of 200 calls", n)
		}
		slow = false
		time.Sleep(20 * time.Minute)
		far.calls = nil
		for range 200 {
			call(t, r)
		}
		if n := far.calls[id(1)]; n < 50 {
			t.Errorf("the instance that was slow got %d of 200 calls, 20 minutes later", n)
		}
	})
}

func TestRefusalsAreTriedElsewhere(t *testing.T) {
	var dir registry
	var all []*kv.Instance
	for i := range 12 {
		all = append(all, on(fmt.Sprintf("n%d", i/4), i)) // n0 has 0..3, n1 4..7, n2 8..11
	}
	dir.set(all...)
	for name, tt := range map[string]struct {
		kind  *router.Error
		dead  func(n int) bool // which nodes refuse
		tries int
		ok    bool
	}{
		"unavailable":         {router.ErrUnavailable, func(n int) bool { return n < 2 }, 3, true}, // one try a node
		"overloaded":          {router.ErrOverloaded, func(n int) bool { return n < 2 }, 3, true},
		"all unavailable":     {router.ErrUnavailable, func(int) bool { return true }, 3, false},
		"perhaps executed":    {router.ErrOutcomeUnknown, func(int) bool { return true }, 1, false},
		"refused":             {router.ErrRefused, func(int) bool { return true }, 1, false},
		"backend not started": {router.ErrBackend, func(int) bool { return true }, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			for range 30 {
				far := &fleet{}
				far.behave = func(i string) error {
					n := slices.IndexFunc(all, func(c *kv.Instance) bool { return c.Instance == i })
					if tt.dead(n / 4) {
						return router.Errorf(tt.kind, "no")
					}
					return nil
				}
				r := router.NewRouter(&dir, far, router.RouterOptions{Node: "elsewhere"})
				err := call(t, r)
				if tt.ok != (err == nil) || far.total() > tt.tries || !tt.ok && (!errors.Is(err, tt.kind) || far.total() != tt.tries) {
					t.Fatalf("%d tries %v, then %v", far.total(), far.order, err)
				}
			}
		})
	}
}

// TestUnknownOutcomes: what may be executed twice is sent to another instance
// when nobody knows whether the first executed it, and nothing else is.
func TestUnknownOutcomes(t *testing.T) {
	var dir registry
	dir.set(on("n1", 1), on("n2", 2))
	modern := `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","progressToken":1},`
	for name, tt := range map[string]struct {
		era   router.Era
		body  string
		tries int
	}{
		"tool":        {router.EraBare, `"method":"tools/call","params":{"name":"x"}`, 1},
		"safe tool":   {router.EraBare, `"method":"tools/call","params":{"name":"safe"}`, 2},
		"modern tool": {router.EraModern, `"method":"tools/call","params":{` + modern + `"name":"x"}`, 1},
		"modern safe": {router.EraModern, `"method":"tools/call","params":{` + modern + `"name":"safe"}`, 2},
		"read":        {router.EraBare, `"method":"resources/read","params":{"uri":"a:b"}`, 2},
		"other":       {router.EraBare, `"method":"x/y"`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			far := &fleet{}
			far.behave = func(string) error {
				if far.total() == 1 {
					return router.Errorf(router.ErrOutcomeUnknown, "silent")
				}
				return nil
			}
			lists := 0
			watch := router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
				if req.Method() == "tools/list" {
					lists++
					if req.Message.HasVersion != (tt.era == router.EraModern) || req.Message.ProgressToken != nil {
						t.Errorf("tools/list in the era %v: %s", tt.era, req.Message.Raw)
					}
				}
				return far.Serve(ctx, req, out)
			})
			m, err := jsonrpc.Parse([]byte(`{"jsonrpc":"2.0","id":1,` + tt.body + `}`))
			if err != nil {
				t.Fatal(err)
			}
			r := router.NewRouter(&dir, watch, router.RouterOptions{Node: "elsewhere"})
			_, err = r.Serve(t.Context(), &router.Request{Server: "s", Era: tt.era, Message: m}, router.Discard)
			if far.total() != tt.tries || (tt.tries == 1) != errors.Is(err, router.ErrOutcomeUnknown) {
				t.Errorf("%d executions, then %v", far.total(), err)
			}
			if (lists > 0) != (m.Method == "tools/call") {
				t.Errorf("asked for tools %d times", lists)
			}
		})
	}
}

// TestHalfDeadIsLeftAlone: an instance that takes no calls costs a few calls a
// try, not each; and it is used again when it is well.
func TestHalfDeadIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dir registry
		dir.set(on("n1", 1), on("n2", 2))
		dead := true
		far := &fleet{behave: func(i string) error {
			if dead && i == id(1) {
				return router.Errorf(router.ErrUnavailable, "gone")
			}
			return nil
		}}
		r := router.NewRouter(&dir, far, router.RouterOptions{Node: "n1"}) // and it is the near one
		for range 1000 {
			if err := call(t, r); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		// In 10 s: at 0, 0.1, 0.3, 0.7, 1.5, 3.1 and 6.3 s.
		if n := far.calls[id(1)]; n < 4 || n > 9 {
			t.Errorf("the half-dead instance was tried %d times in 10 s", n)
		}
		dead = false
		time.Sleep(10 * time.Second)
		far.calls = nil
		for range 10 {
			call(t, r)
		}
		if n := far.calls[id(1)]; n != 10 {
			t.Errorf("well again, the near instance got %d of 10 calls", n)
		}
		dir.set(on("n1", 1))
		dead = true
		for range 3 {
			if err := call(t, r); !errors.Is(err, router.ErrUnavailable) {
				t.Errorf("the only instance is tried each time: %v", err)
			}
		}
	})
}

// TestWhatARouterBelowGaveUp: a server that calls others through a router is not
// blamed for them, and not tried again.
func TestWhatARouterBelowGaveUp(t *testing.T) {
	var none registry
	below := router.NewRouter(&none, &fleet{}, router.RouterOptions{})
	none.set(on("n1", 1))
	var dir registry
	dir.set(on("n1", 1), on("n2", 2))
	calls := 0
	far := router.HandlerFunc(func(ctx context.Context, req *router.Request, out router.Stream) (*router.Reply, error) {
		calls++
		inner := *request(router.EraBare)
		inner.Server = "s"
		return nil, func() error {
			_, err := below.Serve(ctx, &inner, out)
			return err
		}()
	})
	below = router.NewRouter(&none, router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
		return nil, router.Errorf(router.ErrUnavailable, "down")
	}), router.RouterOptions{})
	r := router.NewRouter(other{&dir}, far, router.RouterOptions{Node: "n1"})
	_, err := r.Serve(t.Context(), &router.Request{Server: "all"}, router.Discard)
	if !errors.Is(err, router.ErrUnavailable) || calls != 1 {
		t.Errorf("%d calls, %v; want one, and the error of the server below", calls, err)
	}
}

// other shows a registry's instances under any name.
type other struct{ *registry }

func (o other) Instances(string) []*kv.Instance { return o.list }

func TestWireVersionNotSpoken(t *testing.T) {
	var dir registry
	var far fleet
	speaks := func(i *kv.Instance) error {
		if i.Wire != 1 {
			return fmt.Errorf("instance %s speaks wire version %d, this node 1", i.Instance, i.Wire)
		}
		return nil
	}
	two := func(i *kv.Instance) { i.Wire = 2 }
	dir.set(on("n1", 1, two), on("n2", 2))
	r := router.NewRouter(&dir, &far, router.RouterOptions{Node: "n1", Speaks: speaks})
	for range 10 {
		call(t, r)
	}
	if far.calls[id(2)] != 10 {
		t.Errorf("calls went to %v, want all to instance 2", far.calls)
	}
	dir.set(on("n1", 1, two))
	err := call(t, r)
	if !errors.Is(err, router.ErrUnavailable) || !strings.Contains(err.Error(), "wire version 2") {
		t.Errorf("nobody to speak with: %v", err)
	}
	_, err = r.Serve(t.Context(), &router.Request{Server: "s", Session: router.NewSessionID(id(1))}, router.Discard)
	if !errors.Is(err, router.ErrUnavailable) || !strings.Contains(err.Error(), "wire version 2") {
		t.Errorf("a session there: %v", err)
	}
}

func TestSessionsStay(t *testing.T) {
	var dir registry
	var far fleet
	dir.set(on("n1", 1), on("n2", 2), on("n3", 3))
	r := router.NewRouter(&dir, &far, router.RouterOptions{Node: "n1", Nodes: healthy{}})
	for range 10 {
		if _, err := r.Serve(t.Context(), &router.Request{Server: "s", Session: router.NewSessionID(id(3))}, router.Discard); err != nil {
			t.Fatal(err)
		}
	}
	if far.calls[id(3)] != 10 {
		t.Errorf("the session's calls went to %v", far.calls)
	}
	far.behave = func(string) error { dir.set(on("n1", 1)); return router.Errorf(router.ErrUnavailable, "gone") }
	_, err := r.Serve(t.Context(), &router.Request{Server: "s", Session: router.NewSessionID(id(3))}, router.Discard)
	if !errors.Is(err, router.ErrSessionNotFound) {
		t.Errorf("its instance has gone: %v", err)
	}
	if _, err := r.Serve(t.Context(), &router.Request{Server: "none"}, router.Discard); !errors.Is(err, router.ErrServerNotFound) {
		t.Errorf("no such server: %v", err)
	}
}

func TestRegistryThatChangesMeanwhile(t *testing.T) {
	var dir registry
	var far fleet
	dir.set(on("n1", 1))
	r := router.NewRouter(&dir, &far, router.RouterOptions{Node: "n1"})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 300 {
				if err := call(t, r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for n := range 300 {
		dir.set(on("n1", 1), on("n2", n+2), on("n3", n+400))
		if n%10 == 0 {
			r.Attach(id(n+2), &far)()
		}
		r.Forget("s")
		r.Forget("t")
	}
	wg.Wait()
}

// BenchmarkChoice is what routing adds to a call: with one instance, with
// thousands, and while the registry changes.
func BenchmarkChoice(b *testing.B) {
	nothing := router.HandlerFunc(func(context.Context, *router.Request, router.Stream) (*router.Reply, error) {
		return &router.Reply{}, nil
	})
	nodes := healthy{"n0": true, "n1": true, "n2": true}
	for _, n := range []int{1, 2, 10_000} {
		for _, here := range []bool{true, false} {
			b.Run(fmt.Sprintf("instances=%d/in process=%v", n, here), func(b *testing.B) {
				var dir registry
				var list []*kv.Instance
				for i := range n {
					list = append(list, on(fmt.Sprintf("n%d", i%3), i, eras("legacy", "modern")))
				}
				dir.set(list...)
				r := router.NewRouter(&dir, nothing, router.RouterOptions{Node: "n0", Nodes: nodes})
				if here {
					defer r.Attach(id(0), nothing)()
				}
				req := request(router.EraModern)
				ctx := context.Background()
				b.ReportAllocs()
				for b.Loop() {
					if _, err := r.Serve(ctx, req, router.Discard); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
	b.Run("instances=10000/one changed before each call", func(b *testing.B) {
		var dir registry
		var list []*kv.Instance
		for i := range 10_000 {
			list = append(list, on(fmt.Sprintf("n%d", i%3), i, eras("legacy", "modern")))
		}
		dir.set(list...)
		r := router.NewRouter(&dir, nothing, router.RouterOptions{Node: "n0", Nodes: nodes})
		req := request(router.EraModern)
		b.ReportAllocs()
		for n := 0; b.Loop(); n++ {
			dir.mu.Lock()
			dir.list = slices.Clone(dir.list)
			dir.mu.Unlock()
			if _, err := r.Serve(context.Background(), req, router.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestNotReachedYet: an instance is registered before every server of the
// cluster knows the way to it, or while routes are made again.
func TestNotReachedYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dir registry
		dir.set(on("n2", 1))
		unknown := 0
		far := &fleet{behave: func(string) error {
			if unknown--; unknown >= 0 {
				e := router.Errorf(router.ErrUnavailable, "nobody there")
				e.Unreached = true
				return e
			}
			return nil
		}}
		r := router.NewRouter(&dir, far, router.RouterOptions{Node: "n1"})
		session := &router.Request{Server: "s", Session: router.NewSessionID(id(1)), Message: request(router.EraLegacy).Message}
		for _, req := range []*router.Request{request(router.EraBare), session} {
			unknown = 3
			if _, err := r.Serve(t.Context(), req, router.Discard); err != nil || unknown != -1 {
				t.Errorf("session %q: %v, %d to go", req.Session, err, unknown)
			}
			unknown = 1000
			began := time.Now()
			if _, err := r.Serve(t.Context(), req, router.Discard); !errors.Is(err, router.ErrUnavailable) {
				t.Errorf("nobody ever there: %v", err)
			}
			if took := time.Since(began); took > 1500*time.Millisecond {
				t.Errorf("given up after %s", took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			began = time.Now()
			if _, err := r.Serve(ctx, req, router.Discard); err == nil || time.Since(began) > 50*time.Millisecond {
				t.Errorf("a caller that left: %v after %s", err, time.Since(began))
			}
			cancel()
		}
	})
}
