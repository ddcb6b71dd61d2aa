package deliver

import (
	"cmp"
	"context"
	"strconv"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
)

const (
	// saveInterval is how often the engine is told what was learned of hosts. A
	// crash loses what was learned since.
	saveInterval = time.Second
	// saveTimeout bounds one time of that.
	saveTimeout = 10 * time.Second
	// maxFailing bounds the hosts whose failures are counted in memory. The engine
	// has those of all others.
	maxFailing = 20_000
)

// hostStates are what is kept of hosts beside what the dispatcher knows: since when
// they fail, and why. Its methods can be called from several goroutines at once.
type hostStates struct {
	mu      sync.Mutex
	failing map[string]engine.HostState // hosts whose last attempt failed
	unsaved map[string]engine.HostState
	last    engine.HostState // the latest that was learned
}

func newHostStates() hostStates {
	return hostStates{failing: make(map[string]engine.HostState), unsaved: make(map[string]engine.HostState)}
}

// load takes note of what the engine has of a host.
func (hs *hostStates) load(state engine.HostState) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if _, known := hs.failing[state.Host]; !known && state.Failures > 0 {
		if _, known := hs.unsaved[state.Host]; !known {
			hs.note(state)
		}
	}
}

// note remembers a host that fails. hs.mu is held.
func (hs *hostStates) note(state engine.HostState) {
	if len(hs.failing) >= maxFailing {
		for host := range hs.failing {
			delete(hs.failing, host) // any
			break
		}
	}
	hs.failing[state.Host] = state
}

// learn adds what an attempt has shown of a host.
func (hs *hostStates) learn(host string, stats dispatch.Stats, ans *send.Answer) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	before := hs.failing[host]
	state := engine.HostState{Host: host, Window: stats.Window, Average: stats.Average, AnsweredAt: stats.Answered}
	if ans.Accepted() {
		delete(hs.failing, host)
	} else {
		state.Failures, state.FailingSince = before.Failures+1, before.FailingSince
		if before.Failures == 0 {
			state.FailingSince = ans.At
		}
		state.LastStatus = ans.Status
		state.LastError = cmp.Or(ans.Message(), "status "+strconv.Itoa(ans.Status))
		hs.note(state)
	}
	hs.unsaved[host], hs.last = state, state
}

// take returns what is to be saved; with always the latest state if that is nothing.
func (hs *hostStates) take(always bool) []engine.HostState {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if always && len(hs.unsaved) == 0 && hs.last.Host != "" {
		return []engine.HostState{hs.last}
	}
	states := make([]engine.HostState, 0, len(hs.unsaved))
	for _, state := range hs.unsaved {
		states = append(states, state)
	}
	clear(hs.unsaved)
	return states
}

// putBack is for states that could not be saved.
func (hs *hostStates) putBack(states []engine.HostState) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for _, state := range states {
		if _, newer := hs.unsaved[state.Host]; !newer {
			hs.unsaved[state.Host] = state
		}
	}
}

// saveHosts saves what was learned of hosts from time to time. While the store does
// not store, it finds out when it does again.
func (d *Deliverer) saveHosts(ctx context.Context) {
	ticker := time.NewTicker(saveInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := d.saveNow(ctx); err == nil && d.blocked.Load() {
			d.unblock()
		}
	}
}

func (d *Deliverer) saveNow(ctx context.Context) error {
	states := d.hosts.take(d.blocked.Load())
	if len(states) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	err := d.Engine.SaveHosts(ctx, states)
	if err != nil {
		d.hosts.putBack(states)
	}
	return err
}
