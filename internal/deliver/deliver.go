// Package deliver makes the attempts to deliver the callbacks in a store.
//
//	d := deliver.New(deliver.Config{Engine: engine, …})
//	d.Follow(&deliver.Options{Sender: sender, Retry: waits, …}) // at start, and after each reload
//	d.Follow(nil)                                               // take no more
//	d.Close(ctx)
//
// The engine says which hosts have deliveries due. Package dispatch decides which of
// them may be attempted now, package encode makes the body and package send makes the
// attempt. The outcome is stored before the next attempt is due.
//
// A Deliverer lives as long as its store. New options apply to later attempts. They do
// not change attempts in flight, nor what counts against the limits.
package deliver

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/deadline"
	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Config is the configuration of a Deliverer. It does not change.
type Config struct {
	Engine Engine
	// Folder is where large bodies are kept for their next attempt; see
	// [encode.Options].
	Folder string
	// Quit ends when attempts in flight must be aborted. Aborted attempts do not count.
	// Stopping ends before Quit, when nothing that fails is retried any more.
	Quit, Stopping context.Context
	// Hold keeps the engine open until Unhold is called.
	Hold, Unhold func()
	// Log returns the log for events of the store.
	Log func() *zap.Logger
}

// Engine is the part of an engine that a Deliverer needs.
type Engine interface {
	engine.Deliveries
	Hosts(ctx context.Context, after engine.Cursor, limit int) ([]engine.HostStats, engine.Cursor, error)
	Pause(ctx context.Context, t engine.Target, paused bool) error
	Secret(ctx context.Context) ([]byte, error)
}

// Options say how attempts are made. They must not change while a Deliverer follows
// them.
type Options struct {
	Sender *send.Sender
	Limits dispatch.Limits
	// Retry has the waits between attempts. There is one more attempt than there are
	// waits.
	Retry []time.Duration
	// Window is how long after its verdict a callback may be delivered.
	Window time.Duration
	// PauseAfter is how long a host may fail before it is paused. Zero means that no
	// host is.
	PauseAfter time.Duration
	Log        *zap.Logger
	Observer   Observer
}

// Observer is notified of attempts. Its methods are called from several goroutines at
// once.
type Observer interface {
	// Begin is called with an attempt's request before it is signed. It may add
	// headers. The span that it returns is passed to End. It may be nil.
	Begin(ctx context.Context, rec *task.Record, req *http.Request, at time.Time) trace.Span
	// End is called after each attempt. outcome is empty if the attempt does not count.
	End(rec *task.Record, outcome Outcome, ans *send.Answer, span trace.Span)
	// Expired is called when a callback is stored as dead because its window ended
	// before it was delivered.
	Expired(rec *task.Record)
	// Ended is called when the outcome of the last attempt is stored.
	Ended(rec *task.Record, outcome Outcome)
	// Failed is called for a task whose gateway died, so that the engine decided its
	// verdict.
	Failed(rec *task.Record)
	// HostFailed is called after a failed attempt, at the given time, with the state of
	// its host.
	HostFailed(rec *task.Record, host engine.HostState, at time.Time)
	// HostPaused is called when a failed attempt has paused a host, because it has
	// failed for Options.PauseAfter.
	HostPaused(rec *task.Record, host engine.HostState)
}

// Outcome is the outcome of an attempt, as metrics and the log name it.
type Outcome string

// The outcomes of attempts.
const (
	Delivered Outcome = "delivered"
	Retry     Outcome = "retry"
	Dead      Outcome = "dead"
)

// Deliverer attempts deliveries. Follow and Close must not be called concurrently.
type Deliverer struct {
	Config
	dispatcher *dispatch.Dispatcher
	bodies     *encode.Encoder
	hosts      hostStates
	saving     sync.Mutex              // held while states of hosts are saved
	opts       atomic.Pointer[Options] // nil while no deliveries are taken

	// changed has a value when start must ask the dispatcher again.
	changed chan struct{}
	// blocked is set while the store does not store. Then nothing is attempted: the
	// outcome would be lost, and the callback would be attempted again and again.
	blocked atomic.Bool
	// storing counts attempts that have ended but are not stored yet.
	storing atomic.Int64
	// outageLogged is the time of the last log entry about a store that does not answer,
	// in Unix nanoseconds.
	outageLogged atomic.Int64
	// timeout bounds the calls that store outcomes.
	timeout *deadline.Shared

	stop  context.CancelFunc
	loops sync.WaitGroup
}

// New returns a Deliverer that takes no deliveries before Follow.
func New(c Config) *Deliverer {
	secret := func(ctx context.Context) ([]byte, error) { return c.Engine.Secret(ctx) }
	return &Deliverer{
		Config: c, dispatcher: dispatch.New(dispatch.Limits{}), bodies: encode.New(encode.Options{Folder: c.Folder, Secret: secret}),
		hosts: newHostStates(), changed: make(chan struct{}, 1), timeout: deadline.New(storeTimeout), stop: func() {},
	}
}

// Follow changes the options. With nil, no more deliveries are taken. Attempts in
// flight continue.
func (d *Deliverer) Follow(opts *Options) {
	if opts != nil {
		d.dispatcher.SetLimits(opts.Limits)
	}
	before := d.opts.Swap(opts)
	if before != nil {
		before.Sender.Close() // closes idle connections; the Sender may be used again
	}
	switch {
	case opts == nil:
		d.stop()
		d.loops.Wait()
	case before == nil:
		var ctx context.Context
		ctx, d.stop = context.WithCancel(context.Background())
		d.loops.Go(func() { d.watch(ctx) })
		d.loops.Go(func() { d.start(ctx) })
		d.loops.Go(func() { d.saveHosts(ctx) })
	}
	d.wake()
}

// Close stores the states of hosts, and removes the bodies that were kept for the next
// attempts. Call it when no attempt is in flight.
func (d *Deliverer) Close(ctx context.Context) {
	if err := d.saveNow(ctx); err != nil {
		d.Log().Warn("saving the state of hosts failed", zap.Error(err))
	}
	if err := d.bodies.Close(); err != nil {
		d.Log().Warn("removing encoded callbacks failed", zap.Error(err))
	}
}

// RateLimited reports whether callbacks to a host wait because of the rate in the
// options.
func (d *Deliverer) RateLimited(hostPort string) bool { return d.dispatcher.RateLimited(hostPort) }

// wake makes start ask the dispatcher again. It does not block.
func (d *Deliverer) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// dueBatch is how many hosts the engine returns at once.
const dueBatch = 256

// watch reports hosts with deliveries due from the engine to the dispatcher.
func (d *Deliverer) watch(ctx context.Context) {
	for ctx.Err() == nil {
		hosts, err := d.Engine.DueHosts(ctx, dueBatch)
		now := time.Now()
		for _, host := range hosts {
			d.due(host, now)
		}
		d.wake()
		d.failed(ctx, "store does not say which callbacks are due", err)
	}
}

// due reports a host with deliveries due to the dispatcher.
func (d *Deliverer) due(host engine.HostDue, now time.Time) {
	d.hosts.load(host.HostState)
	d.dispatcher.Due(dispatch.Due{
		Host: host.Host, N: host.Due, Trusted: host.Trusted,
		Stats: dispatch.Stats{Window: host.Window, Average: host.Average, Answered: host.AnsweredAt},
	}, now)
}

const (
	// outageLogInterval is the time between log entries about a store that does not answer.
	outageLogInterval = time.Minute
	// storeRetryInterval is the wait before an unavailable store is tried again.
	storeRetryInterval = time.Second
)

// failed logs an error of the engine and waits, so that an unavailable engine is not
// called in a tight loop.
func (d *Deliverer) failed(ctx context.Context, event string, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	now := time.Now()
	if last := d.outageLogged.Load(); now.UnixNano()-last >= int64(outageLogInterval) && d.outageLogged.CompareAndSwap(last, now.UnixNano()) {
		d.Log().Warn(event, zap.Error(err))
	}
	select {
	case <-ctx.Done():
	case <-time.After(storeRetryInterval):
	}
}

// maxStoring bounds the ended attempts that wait for a slow store.
const maxStoring = 512

// start starts the attempts that the dispatcher grants.
func (d *Deliverer) start(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if d.dispatcher.Reread() {
			d.loops.Go(func() { d.reread(ctx) })
		}
		if !d.blocked.Load() && d.storing.Load() < maxStoring {
			if grant, ok := d.dispatcher.Next(time.Now()); ok {
				d.Hold()
				go d.attemptGrant(ctx, grant)
				continue
			}
		}
		now := time.Now()
		timer.Stop()
		if at := d.dispatcher.NextChange(now); !at.IsZero() {
			timer.Reset(max(at.Sub(now), time.Millisecond))
		}
		select {
		case <-d.changed:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// reread reports all hosts with deliveries due again, because the dispatcher had no
// room for some of them.
func (d *Deliverer) reread(ctx context.Context) {
	const page = 1000
	var cursor engine.Cursor
	for {
		hosts, next, err := d.Engine.Hosts(ctx, cursor, page)
		now := time.Now()
		for _, host := range hosts {
			if !host.Paused && !host.Next.IsZero() && !host.Next.After(now) {
				d.due(engine.HostDue{HostState: host.HostState, Due: 1}, now)
			}
		}
		d.wake()
		switch {
		case err != nil && ctx.Err() != nil:
			return
		case err != nil:
			d.failed(ctx, "store does not say which callbacks are due", err)
			cursor = ""
		case next == "":
			return
		default:
			cursor = next
		}
	}
}

// attemptGrant takes the deliveries of a grant and attempts them.
func (d *Deliverer) attemptGrant(ctx context.Context, grant dispatch.Grant) {
	defer d.Unhold()
	taken, err := d.Engine.Take(ctx, grant.Host, len(grant.Attempts))
	if n := len(grant.Attempts); len(taken) == n {
		d.again(grant.Host, n) // there may be more
	} else {
		d.dispatcher.Short(grant, len(taken), time.Now())
		d.wake()
	}
	if err != nil {
		// The engine does not report the host again, because it expects that Take was
		// successful.
		defer d.again(grant.Host, len(grant.Attempts))
		defer d.failed(ctx, "store does not hand out callbacks that are due", err)
	}
	if len(taken) == 0 {
		return
	}
	for i, dl := range taken[1:] {
		d.Hold()
		go func() {
			defer d.Unhold()
			d.attempt(grant.Attempts[i+1], dl)
		}()
	}
	d.attempt(grant.Attempts[0], taken[0])
}

// again makes the dispatcher grant attempts to a host once more, because the engine may
// have more deliveries. If there are none, that costs one Take.
func (d *Deliverer) again(host string, n int) {
	d.dispatcher.Due(dispatch.Due{Host: host, N: n}, time.Now())
	d.wake()
}
