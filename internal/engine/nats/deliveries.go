package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// DueHosts implements engine.Deliveries.
func (e *Engine) DueHosts(ctx context.Context, limit int) ([]engine.HostDue, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := e.closed(); err != nil {
			return nil, err
		}
		due, wait := e.index.dueHosts(limit)
		if len(due) > 0 {
			return due, nil
		}
		e.sleep(ctx, e.index.earlier, wait)
	}
}

// dueHosts returns up to limit hosts, and how long to wait for the next one.
func (x *index) dueHosts(limit int) (due []engine.HostDue, wait time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	now := time.Now().UnixNano()
	for wait = maxSleep; len(x.due) > 0 && len(due) < limit; {
		b := x.due[0]
		if wait = min(maxSleep, time.Duration(b.entries[0].ready-now)); wait > 0 {
			break
		}
		b.isReported = true
		x.report(b)
		due = append(due, engine.HostDue{HostState: b.state, Due: b.ready(now), Trusted: b.trusted > 0})
	}
	return due, wait
}

// countLimit is how many ready entries of a backlog are counted.
const countLimit = 1000

// ready counts the entries that are ready. Above countLimit it returns the size of the
// whole backlog.
func (b *backlog) ready(now int64) (n int) {
	below := []int{0}
	for len(below) > 0 && n < countLimit {
		i := below[len(below)-1]
		below = below[:len(below)-1]
		if i < len(b.entries) && b.entries[i].ready <= now {
			n++
			below = append(below, 2*i+1, 2*i+2)
		}
	}
	if n == countLimit {
		return len(b.entries)
	}
	return n
}

// setHostState updates the state of a host that a dispatcher has stored.
func (x *index) setHostState(s engine.HostState) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := x.host(s.Host)
	s.Paused = b.state.Paused
	b.state = s
}

// SaveHosts implements engine.Deliveries. If several gateways save the state of a host,
// the last one wins.
func (e *Engine) SaveHosts(ctx context.Context, hosts []engine.HostState) error {
	for _, h := range hosts {
		if _, err := e.store(ctx, newMessage(hostSubject+token(h.Host), h, hostTTL)); err != nil {
			return fmt.Errorf("storing the state of the host %s: %w", h.Host, err)
		}
		e.index.setHostState(h)
	}
	return nil
}

// hostTTL is how long the saved state of a host is kept.
const hostTTL = 7 * 24 * time.Hour

// delivery implements engine.Delivery.
type delivery struct {
	*inFlight
	rec *task.Record // the caller adds attempts to it
}

// Take implements engine.Deliveries. Each delivery is a step that names this gateway as
// its holder. Deliveries that another gateway takes first are left out.
func (e *Engine) Take(ctx context.Context, host string, n int) (taken []engine.Delivery, err error) {
	if err := e.available(); err != nil {
		return nil, err // attempts whose outcome cannot be stored would be repeated
	}
	for len(taken) < n && err == nil {
		picked, _ := e.index.pick(e.index.host, host, n-len(taken))
		if len(picked) == 0 {
			break
		}
		var more []engine.Delivery
		more, err = each(picked, func(c candidate) (engine.Delivery, error) { return e.take(ctx, c) })
		taken = append(taken, more...)
	}
	if len(taken) < n {
		e.index.askAgain(host)
	}
	if len(taken) > 0 {
		return taken, nil
	}
	return nil, err
}

// askAgain makes DueHosts report a host again when it has deliveries due.
func (x *index) askAgain(host string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := x.host(host)
	b.isReported = false
	x.report(b)
}

// take stores that a delivery is in flight here. It returns ErrLost if another gateway
// took it first, or if the delivery expired and is now dead.
func (e *Engine) take(ctx context.Context, c candidate) (engine.Delivery, error) {
	f, err := e.begin(ctx, c, func(m *message) (*message, error) {
		if e.isLate(m) {
			return nil, cmp.Or(e.giveUp(ctx, m), errLaterStep)
		}
		return m.next(m.rec, task.Delivering), nil
	})
	if err != nil {
		return nil, err
	}
	return &delivery{f, cloneRecord(f.m.rec)}, nil
}

func (d *delivery) Record() *task.Record { return d.rec }

func (d *delivery) Result(ctx context.Context) (io.ReadCloser, error) { return d.engine.body(ctx, d.m) }

// end stores the step that ends the delivery. If that fails, the attempt may be
// repeated.
func (d *delivery) end(ctx context.Context, m *message, name string) error {
	if err := d.inFlight.end(ctx, m, name); err != nil {
		if !errors.Is(err, engine.ErrLost) {
			d.engine.index.drop(d.m.meta.ID, d.inFlight, err)
		}
		return fmt.Errorf("storing the outcome of the callback of task %s: %w", d.m.meta.ID, err)
	}
	return nil
}

func (d *delivery) Done(ctx context.Context) error {
	rec := cloneRecord(d.rec)
	if rec.DeliveredAt.IsZero() {
		rec.DeliveredAt = time.Now().UTC()
	}
	n := d.m.next(rec, task.Done)
	if !d.engine.settings.Load().KeepResults && rec.Queue == "" && n.meta.Size > 0 {
		n.clearBody()
	}
	return d.end(ctx, n, "done")
}

func (d *delivery) Retry(ctx context.Context, at time.Time) error {
	rec := cloneRecord(d.rec)
	rec.NextAttemptAt = at
	n := d.m.next(rec, task.Delivering)
	n.meta.Ready, n.meta.Order = at.UnixNano(), 0
	return d.end(ctx, n, "retry")
}

func (d *delivery) Dead(ctx context.Context) error {
	return d.end(ctx, d.m.next(cloneRecord(d.rec), task.Dead), "dead")
}

func (d *delivery) Release(ctx context.Context) error {
	err := d.end(ctx, d.m.next(d.m.rec, task.Delivering), "release")
	if err == nil {
		d.engine.index.askAgain(d.m.meta.Host)
	}
	return err
}

// isLate reports whether the delivery window of the callback has ended.
func (e *Engine) isLate(m *message) bool {
	return m.meta.Finished < time.Now().Add(-e.settings.Load().DeliveryWindow).UnixNano()
}

// giveUp makes a callback whose delivery window has ended a dead letter.
func (e *Engine) giveUp(ctx context.Context, m *message) error {
	n := m.next(m.rec, task.Dead)
	if err := e.put(ctx, n, m.seq); err != nil {
		return err
	}
	if gaveUp := e.settings.Load().GaveUp; gaveUp != nil {
		gaveUp(cloneRecord(n.rec))
	}
	return nil
}
