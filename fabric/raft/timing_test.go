package raft_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"ripstop/fabric/raft"
)

// TestGuard fails when an upgrade of nats-server drops or renames a variable that
// this package sets (it would read as zero), or changes its default. Then read the
// new server/raft.go before changing Stock.
func TestGuard(t *testing.T) {
	if got, want := raft.AtStart(), raft.Stock().RaftPart(); got != want {
		t.Errorf("nats-server %s starts with\n %s, want\n %s", server.VERSION, got, want)
	}
	if got, want := raft.Now(), timing.RaftPart(); got != want {
		t.Errorf("after Apply nats-server has\n %s, want\n %s", got, want)
	}
}

func TestPresetsAreValid(t *testing.T) {
	for _, name := range raft.Presets {
		p, err := raft.ByName(name)
		if err != nil || p.Name != name {
			t.Errorf("ByName(%q) = %q, %v", name, p.Name, err)
		}
		for _, f := range []float64{1, 2, 5} {
			if name == "stock" && f > 1 {
				continue // nats-server takes no slower route pings
			}
			if err := p.Scale(f).Validate(); err != nil {
				t.Errorf("%s x %g: %v", name, f, err)
			}
		}
	}
	if p, err := raft.ByName(""); err != nil || p != raft.LAN() {
		t.Errorf("ByName(\"\") = %q, %v, want lan", p.Name, err)
	}
	if _, err := raft.ByName("turbo"); err == nil || !strings.Contains(err.Error(), "lan, wan, stock") {
		t.Errorf("ByName(turbo) = %v, want an error that lists the presets", err)
	}
}

// The promises in docs rest on these.
func TestLAN(t *testing.T) {
	p := raft.LAN()
	ms := func(d time.Duration) int64 { return d.Milliseconds() }
	got := []int64{ms(p.Heartbeat), ms(p.ElectionMin), ms(p.ElectionMax), ms(p.CampaignMin), ms(p.CampaignMax), ms(p.LostQuorum), ms(p.LostQuorumCheck), ms(p.RoutePing), ms(p.CampaignStagger)}
	want := []int64{100, 400, 1000, 10, 40, 750, 250, 250, 150}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if p.PeerRemove != 5*time.Minute {
		t.Errorf("got PeerRemove %s, want nats-server's 5m", p.PeerRemove)
	}
}

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*raft.Timing)
		want   string // in the error
	}{
		{"zero", func(p *raft.Timing) { *p = raft.Timing{Name: "mine"} }, "Heartbeat is 0s"},
		{"negative", func(p *raft.Timing) { p.Redial = -1 }, "Redial is -1ns"},
		{"no pings", func(p *raft.Timing) { p.RoutePingsOut = 0 }, "RoutePingsOut is 0"},
		{"no client pings", func(p *raft.Timing) { p.ClientPingsOut = 0 }, "ClientPingsOut is 0"},
		{"election too soon", func(p *raft.Timing) { p.ElectionMin = 3 * p.Heartbeat }, "more than 3 x Heartbeat"},
		{"election too narrow", func(p *raft.Timing) { p.ElectionMax = p.ElectionMin }, "split the vote"},
		{"campaign empty", func(p *raft.Timing) { p.CampaignMax = p.CampaignMin }, "more than CampaignMin"},
		{"campaign slow", func(p *raft.Timing) { p.CampaignMax = p.ElectionMin }, "less than ElectionMin"},
		{"quorum lost early", func(p *raft.Timing) { p.LostQuorum = p.ElectionMin - 1 }, "LostQuorum 399.999999ms"},
		{"check too rare", func(p *raft.Timing) { p.LostQuorumCheck = p.LostQuorum + 1 }, "LostQuorumCheck"},
		{"signal too often", func(p *raft.Timing) { p.LostQuorumSignal = p.LostQuorum - 1 }, "LostQuorumSignal"},
		{"removed peers come back", func(p *raft.Timing) { p.PeerRemove = time.Minute }, "PeerRemove 1m0s must be at least 5m0s"},
		{"rescue too short", func(p *raft.Timing) { p.Rescue = time.Second }, "Rescue 1s"},
		{"route ping beyond the server's", func(p *raft.Timing) { p.RoutePing, p.ClientPing = time.Minute, time.Minute }, "the most nats-server takes"},
		{"routes close early", func(p *raft.Timing) { p.RoutePing = 100 * time.Millisecond }, "closes the route"},
		{"clients before routes", func(p *raft.Timing) { p.ClientPing = p.RoutePing - 1 }, "ClientPing"},
		{"stagger too short", func(p *raft.Timing) { p.CampaignStagger = p.CampaignMax - 1 }, "CampaignStagger"},
		{"scaled to nothing", func(p *raft.Timing) { *p = p.Scale(0) }, "Heartbeat is 0s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := raft.LAN()
			tc.change(&p)
			err := p.Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
			if applyErr := p.Apply(); applyErr == nil || errors.Is(applyErr, raft.ErrApplied) {
				t.Errorf("Apply = %v, want the same error", applyErr)
			}
		})
	}
}

func TestApplyAgain(t *testing.T) {
	renamed := timing
	renamed.Name, renamed.ClientPing = "mine", time.Minute // not process-wide
	for _, same := range []raft.Timing{timing, renamed} {
		if err := same.Apply(); err != nil {
			t.Errorf("apply the same values again: %v", err)
		}
	}
	for _, other := range []raft.Timing{raft.WAN(), raft.Stock(), timing.Scale(3)} {
		if err := other.Apply(); !errors.Is(err, raft.ErrApplied) {
			t.Errorf("apply %s after %s: got %v, want ErrApplied", other.Name, timing.Name, err)
		}
	}
	if got, want := raft.Now(), timing.RaftPart(); got != want {
		t.Errorf("refused calls changed the timing to %s", got)
	}
}

func TestConfigure(t *testing.T) {
	o := &server.Options{PingInterval: time.Hour}
	raft.Stock().Configure(o)
	if o.PingInterval != time.Hour || o.Cluster.PingInterval != 0 {
		t.Errorf("stock set the pings to %s and %s", o.PingInterval, o.Cluster.PingInterval)
	}
	raft.LAN().Configure(o)
	if got, want := [2]time.Duration{o.PingInterval, o.Cluster.PingInterval}, [2]time.Duration{5 * time.Second, 250 * time.Millisecond}; got != want {
		t.Errorf("got pings every %v, want %v", got, want)
	}
	if o.MaxPingsOut != 2 || o.Cluster.MaxPingsOut != 2 {
		t.Errorf("got %d and %d pings out, want 2 and 2", o.MaxPingsOut, o.Cluster.MaxPingsOut)
	}
}
