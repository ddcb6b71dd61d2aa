package callback

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// deliverer attempts the deliveries of a store: the engine says which hosts have
// deliveries due, the dispatcher which of them may be attempted now. It lives as
// long as the store: a reload changes how attempts are made from then on, not those
// in flight, nor what counts against the limits.
type deliverer struct {
	store      *sharedStore
	dispatcher *dispatch.Dispatcher
	bodies     *encode.Encoder
	hosts      hostStates

	mu     sync.Mutex
	sender *sender // of the generation that delivers; nil if none does

	// changed has a value when the dispatcher is to be asked again.
	changed chan struct{}
	// blocked is set while the store does not store. Then nothing is attempted:
	// what follows from it would be lost, and the callback attempted again and again.
	blocked atomic.Bool
	// storing counts attempts that have ended and are not stored yet.
	storing atomic.Int64
	// awayLogged is when it was last logged that the store does not answer.
	awayLogged atomic.Int64

	stop  context.CancelFunc
	loops sync.WaitGroup
}

func newDeliverer(s *sharedStore, folder string) *deliverer {
	return &deliverer{
		store: s, dispatcher: dispatch.New(dispatch.Limits{}), bodies: encode.New(encode.Options{Folder: folder}),
		hosts: newHostStates(), changed: make(chan struct{}, 1), stop: func() {},
	}
}

// owner returns the generation that delivers, nil if none does.
func (d *deliverer) owner() *App {
	if s := d.current(); s != nil {
		return s.app
	}
	return nil
}

func (d *deliverer) current() *sender {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sender
}

// follow makes attempts go by the options of a generation. With nil no more
// deliveries are taken; attempts in flight go on.
func (d *deliverer) follow(owner *App) {
	before := d.current()
	if before != nil && before.app == owner || before == nil && owner == nil {
		return
	}
	var next *sender
	if owner != nil {
		next = newSender(owner)
		d.dispatcher.SetLimits(owner.Delivery.limits())
	}
	d.mu.Lock()
	d.sender = next
	d.mu.Unlock()
	if before != nil {
		before.send.Close()
	}
	switch {
	case owner == nil:
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

// close stores what is known of hosts and removes the bodies of callbacks that were
// kept for their next attempts. No attempt is in flight any more.
func (d *deliverer) close(ctx context.Context) {
	if err := d.saveNow(ctx); err != nil {
		d.store.logger().Warn("what is known of receivers is not saved", zap.Error(err))
	}
	if err := d.bodies.Close(); err != nil {
		d.store.logger().Warn("encoded callbacks are not removed", zap.Error(err))
	}
}

// wake has the dispatcher asked again. It does not wait.
func (d *deliverer) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// dueBatch is how many hosts the engine is asked for at once.
const dueBatch = 256

// watch learns which hosts have deliveries due.
func (d *deliverer) watch(ctx context.Context) {
	for ctx.Err() == nil {
		hosts, err := d.store.DueHosts(ctx, dueBatch)
		now := time.Now()
		for _, host := range hosts {
			d.due(host, now)
		}
		d.wake()
		d.failed(ctx, "store does not say which callbacks are due", err)
	}
}

// due tells the dispatcher of a host with deliveries due.
func (d *deliverer) due(host engine.HostDue, now time.Time) {
	d.hosts.load(host.HostState)
	d.dispatcher.Due(dispatch.Due{
		Host: host.Host, N: host.Due, Trusted: host.Trusted,
		Stats: dispatch.Stats{Window: host.Window, Average: host.Average, Answered: host.AnsweredAt},
	}, now)
}

// failed logs an error of the engine and waits a moment, so that an engine that is
// away is not asked in a tight loop.
func (d *deliverer) failed(ctx context.Context, event string, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	now := time.Now()
	if last := d.awayLogged.Load(); now.UnixNano()-last >= int64(awayInterval) && d.awayLogged.CompareAndSwap(last, now.UnixNano()) {
		d.store.logger().Warn(event, zap.Error(err))
	}
	select {
	case <-ctx.Done():
	case <-time.After(fetchPause):
	}
}

// maxStoring bounds the attempts that wait for a slow store.
const maxStoring = 2048

// start starts the attempts that the dispatcher grants.
func (d *deliverer) start(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if d.dispatcher.Reread() {
			d.loops.Go(func() { d.reread(ctx) })
		}
		if !d.blocked.Load() && d.storing.Load() < maxStoring {
			if grant, ok := d.dispatcher.Next(time.Now()); ok {
				d.store.use()
				go d.carryOut(ctx, grant)
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

// reread reports all hosts with deliveries due again: the dispatcher had no room
// for some of them.
func (d *deliverer) reread(ctx context.Context) {
	const page = 1000
	var cursor engine.Cursor
	for {
		hosts, next, err := d.store.Hosts(ctx, cursor, page)
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

// carryOut takes the deliveries of a grant and attempts them.
func (d *deliverer) carryOut(ctx context.Context, grant dispatch.Grant) {
	defer d.store.leave()
	taken, err := d.store.Take(ctx, grant.Host, len(grant.Attempts))
	now := time.Now()
	d.dispatcher.Short(grant, len(taken), now)
	if err != nil {
		// The engine does not report the host again, for it thinks that it is served.
		defer d.again(grant.Host, len(grant.Attempts))
		defer d.failed(ctx, "store does not hand out callbacks that are due", err)
	} else if len(taken) == len(grant.Attempts) {
		d.again(grant.Host, len(taken)) // there may be more
	}
	d.wake()
	if len(taken) == 0 {
		return
	}
	for i, dl := range taken[1:] {
		d.store.use()
		go func() {
			defer d.store.leave()
			d.attempt(grant.Attempts[i+1], dl)
		}()
	}
	d.attempt(grant.Attempts[0], taken[0])
}

// again has the engine asked once more for deliveries of a host. If there are none,
// that costs one look.
func (d *deliverer) again(host string, n int) {
	d.dispatcher.Due(dispatch.Due{Host: host, N: n}, time.Now())
	d.wake()
}
