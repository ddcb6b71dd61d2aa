package deliver

import (
	"cmp"
	"context"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	// saveInterval is how often new states of hosts are saved in the engine. A crash
	// loses the changes since the last time.
	saveInterval = time.Second
	// saveTimeout bounds one save.
	saveTimeout = 10 * time.Second
	// maxFailing bounds the hosts whose failures are counted in memory. The engine has
	// the failures of all others.
	maxFailing = 20_000
)

// hostStates has what the dispatcher does not know about hosts: since when they fail,
// and why. Its methods can be called from several goroutines at once.
type hostStates struct {
	mu      sync.Mutex
	failing map[string]engine.HostState // hosts whose last attempt failed
	unsaved map[string]engine.HostState
	last    engine.HostState // the latest state
}

func newHostStates() hostStates {
	return hostStates{failing: make(map[string]engine.HostState), unsaved: make(map[string]engine.HostState)}
}

// load takes over the state of a host with deliveries due from the engine, unless a
// newer state is in memory.
func (hs *hostStates) load(state engine.HostState) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	known, failing := hs.failing[state.Host]
	_, newer := hs.unsaved[state.Host]
	switch {
	case failing && (known.Paused || state.Failures == 0 && !newer):
		// It was resumed: a paused host has no deliveries due.
		delete(hs.failing, state.Host)
		delete(hs.unsaved, state.Host)
	case !failing && !newer && state.Failures > 0:
		hs.note(state)
	}
}

// markPaused marks a failing host as paused, or not. It reports whether that has changed
// the state.
func (hs *hostStates) markPaused(host string, paused bool) bool {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	state, failing := hs.failing[host]
	if !failing || state.Paused == paused {
		return false
	}
	state.Paused = paused
	hs.failing[host] = state
	return true
}

// note stores the state of a host that fails. The caller holds hs.mu.
func (hs *hostStates) note(state engine.HostState) {
	if len(hs.failing) >= maxFailing {
		for host := range hs.failing {
			delete(hs.failing, host) // any one
			break
		}
	}
	hs.failing[state.Host] = state
}

// learn updates the state of a host after an attempt, and returns it.
func (hs *hostStates) learn(host string, stats dispatch.Stats, ans *send.Answer) engine.HostState {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	before := hs.failing[host]
	state := engine.HostState{Host: host, Window: stats.Window, Average: stats.Average, AnsweredAt: stats.Answered}
	if ans.Accepted() {
		delete(hs.failing, host)
	} else {
		state.Failures, state.FailingSince, state.Paused = before.Failures+1, before.FailingSince, before.Paused
		if before.Failures == 0 {
			state.FailingSince = ans.At
		}
		state.LastStatus = ans.Status
		state.LastError = cmp.Or(ans.Message(), "status "+strconv.Itoa(ans.Status))
		hs.note(state)
	}
	hs.unsaved[host], hs.last = state, state
	return state
}

// remove removes the state of a host.
func (hs *hostStates) remove(host string) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	delete(hs.failing, host)
	delete(hs.unsaved, host)
	if hs.last.Host == host {
		hs.last = engine.HostState{}
	}
}

// take returns the states to save. If there are none and always is set, it returns the
// latest state.
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

// markUnsaved marks states as unsaved again after a save failed, unless there is a newer
// state.
func (hs *hostStates) markUnsaved(states []engine.HostState) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for _, state := range states {
		if _, newer := hs.unsaved[state.Host]; !newer {
			hs.unsaved[state.Host] = state
		}
	}
}

// saveHosts regularly saves new states of hosts. While the store does not store, a
// successful save shows that it works again.
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

// saveNow saves new states of hosts. When it returns, all earlier saves have ended.
func (d *Deliverer) saveNow(ctx context.Context) error {
	d.saving.Lock()
	defer d.saving.Unlock()
	states := d.hosts.take(d.blocked.Load())
	if len(states) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, saveTimeout)
	defer cancel()
	err := d.Engine.SaveHosts(ctx, states)
	if err != nil {
		d.hosts.markUnsaved(states)
	}
	return err
}

// Resume resumes a host. It drops failures that are not saved yet, because they would
// count again if they were saved afterwards.
func (d *Deliverer) Resume(ctx context.Context, host string) error {
	d.saving.Lock()
	defer d.saving.Unlock()
	if err := d.Engine.Pause(ctx, engine.Target{Host: host}, false); err != nil {
		return err
	}
	d.hosts.remove(host)
	return nil
}

// pauseFailing pauses a host if it has failed for PauseAfter until the attempt at the
// given time. The state of the host is saved first: it must not be saved after the host
// is resumed, because resuming clears its failures.
func (d *Deliverer) pauseFailing(o *Options, rec *task.Record, host engine.HostState, at time.Time) {
	if o.PauseAfter == 0 || at.Sub(host.FailingSince) < o.PauseAfter || !d.hosts.markPaused(host.Host, true) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), saveTimeout)
	defer cancel()
	err := d.saveNow(ctx)
	if err == nil {
		err = d.Engine.Pause(ctx, engine.Target{Host: host.Host}, true)
	}
	log := o.Log.With(zap.String("callback_host", host.Host), zap.Time("failing_since", host.FailingSince),
		zap.Int("failures", host.Failures), zap.String("error", host.LastError))
	if err != nil {
		d.hosts.markPaused(host.Host, false) // the next failed attempt tries again
		log.Error("failing host not paused", zap.NamedError("cause", err))
		return
	}
	log.Warn("failing host paused")
	o.Observer.HostPaused(rec, host)
}
