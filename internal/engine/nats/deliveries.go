package nats

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// DueHosts implements engine.Deliveries.
func (e *Engine) DueHosts(ctx context.Context, limit int) ([]engine.HostDue, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := e.closing.Err(); err != nil {
			return nil, e.available()
		}
		if due := e.index.dueHosts(limit); len(due) > 0 {
			return due, nil
		}
		select {
		case <-ctx.Done():
		case <-e.closing.Done():
		case <-e.index.reported:
		}
	}
}

func (x *index) dueHosts(limit int) (due []engine.HostDue) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.reports) > 0 && len(due) < limit {
		b := x.reports[0]
		x.reports[0] = nil
		x.reports = x.reports[1:]
		b.toReport = false
		if b.paused || b.due.len() == 0 {
			continue
		}
		b.isReported = true
		due = append(due, engine.HostDue{HostState: b.hostState(), Due: b.due.len(), Trusted: b.trusted > 0})
	}
	if len(x.reports) > 0 {
		signal(x.reported)
	}
	return due
}

// hostState returns what is known of a host.
func (b *backlog) hostState() engine.HostState {
	s := b.learned
	s.Paused = b.paused
	return s
}

// learn notes what a dispatcher has learned of a host.
func (x *index) learn(s engine.HostState) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.backlog(x.hosts, s.Host).learned = s
}

// SaveHosts implements engine.Deliveries. Of several gateways the last one counts.
func (e *Engine) SaveHosts(ctx context.Context, hosts []engine.HostState) error {
	for _, h := range hosts {
		h.Paused = false
		msg := nats.NewMsg(hostSubject + token(h.Host))
		msg.Header.Set(ttlHeader, hostTTL.String())
		if err := setMeta(msg, hostMeta{h}); err != nil {
			return err
		}
		if _, err := e.store(ctx, msg); err != nil {
			return fmt.Errorf("storing the state of the host %s: %w", h.Host, err)
		}
		e.index.learn(h)
	}
	return nil
}

// hostTTL is how long what was learned of a host is of use.
const hostTTL = 7 * 24 * time.Hour

// delivery implements engine.Delivery.
type delivery struct {
	engine *Engine
	entry  *entry
	m      *message
	rec    *task.Record // what the caller adds attempts to
	taking string       // tells this taking of the entry from others
	mu     sync.Mutex
	ended  bool
}

// Take implements engine.Deliveries. Each delivery is a step that names this gateway
// as its holder; those that another gateway takes first are left out.
func (e *Engine) Take(ctx context.Context, host string, n int) ([]engine.Delivery, error) {
	if err := e.available(); err != nil {
		return nil, err // or what cannot be stored would be attempted again and again
	}
	b := e.index.host(host)
	var taken []engine.Delivery
	for len(taken) < n {
		picked := e.index.pickDeliveries(b, n-len(taken))
		if len(picked) == 0 {
			break
		}
		more, err := e.take(ctx, b, picked)
		taken = append(taken, more...)
		if err != nil && len(taken) == 0 {
			e.index.askAgain(b)
			return nil, err
		} else if err != nil {
			break
		}
	}
	if len(taken) < n {
		e.index.askAgain(b)
	}
	return taken, nil
}

func (x *index) host(name string) *backlog {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.backlog(x.hosts, name)
}

// askAgain makes DueHosts report a host again when it has deliveries due.
func (x *index) askAgain(b *backlog) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b.isReported = false
	x.call(b)
}

// pick is a delivery that is about to be taken, as it was when it was picked: by the
// time of the step, the entry may tell that another gateway has taken it.
type pick struct {
	entry  *entry
	seq    uint64
	taking string
}

// pickDeliveries takes up to n deliveries that are due out of a host's backlog.
func (x *index) pickDeliveries(b *backlog, n int) (picked []pick) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for !b.paused && b.due.len() > 0 && len(picked) < n {
		e := b.due.items[x.choose(b)]
		x.unplace(e)
		x.setTaken(e, true)
		e.taking = newID()
		picked = append(picked, pick{e, e.seq, e.taking})
	}
	return picked
}

// setTaken says whether a delivery is in flight here.
func (x *index) setTaken(e *entry, taken bool) {
	if e.taken == taken || e.state != task.Delivering {
		return
	}
	x.count(e, -1)
	e.taken = taken
	x.count(e, 1)
}

// giveBack makes a delivery due again after its step was not stored, or perhaps was.
// It does nothing if the delivery was taken anew meanwhile.
func (x *index) giveBack(e *entry, taking string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e.taking != taking || x.tasks[e.id] != e {
		return
	}
	x.setTaken(e, false)
	if e.host != nil {
		e.host.isReported = false
	}
	x.place(e)
}

// take takes deliveries that were picked. It leaves out those that are lost.
func (e *Engine) take(ctx context.Context, b *backlog, picked []pick) (taken []engine.Delivery, err error) {
	all := make([]*delivery, len(picked))
	errs := make([]error, len(picked))
	var wait sync.WaitGroup
	for i, p := range picked {
		wait.Go(func() { all[i], errs[i] = e.takeOne(ctx, p) })
	}
	wait.Wait()
	for i, d := range all {
		e.index.claimed(b, errors.Is(errs[i], engine.ErrLost))
		switch {
		case errs[i] == nil && d != nil:
			taken = append(taken, d)
		case errs[i] != nil && !errors.Is(errs[i], engine.ErrLost) && !errors.Is(errs[i], engine.ErrNotFound):
			err = errs[i]
		}
	}
	return taken, err
}

// takeOne returns nil if the delivery has become dead instead.
func (e *Engine) takeOne(ctx context.Context, p pick) (*delivery, error) {
	m, err := e.loadTask(ctx, p.entry.id, p.seq)
	if err == nil && (m.seq != p.seq || m.meta.State != task.Delivering) {
		err = errWrongSequence
	}
	if err != nil {
		e.index.giveBack(p.entry, p.taking)
		return nil, err
	}
	if e.isLate(m) {
		return nil, e.bury(ctx, m)
	}
	n := m.next(m.rec, task.Delivering)
	n.meta.Holder, n.meta.Token = e.id, p.taking
	if n.meta.Order == 0 {
		n.meta.Order = p.seq
	}
	if err := e.put(ctx, n, p.seq); err != nil {
		e.index.giveBack(p.entry, p.taking)
		return nil, err
	}
	return &delivery{engine: e, entry: p.entry, m: n, rec: cloneRecord(n.rec), taking: p.taking}, nil
}

// Record implements engine.Delivery.
func (d *delivery) Record() *task.Record { return d.rec }

// Result implements engine.Delivery.
func (d *delivery) Result(ctx context.Context) (io.ReadCloser, error) { return d.engine.body(ctx, d.m) }

// body opens the body of a message, wherever it is.
func (e *Engine) body(ctx context.Context, m *message) (io.ReadCloser, error) {
	if m.meta.Dropped || m.rec.Ended() && m.rec.Result == nil {
		return nil, engine.ErrNotFound
	}
	if m.meta.Body != "" {
		return e.openBody(ctx, m.meta.Body, m.meta.Size)
	}
	return io.NopCloser(bytes.NewReader(m.body)), nil
}

// end stores the delivery's next step and gives it back if that fails: then its
// attempt may be repeated.
func (d *delivery) end(ctx context.Context, n *message) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended {
		return engine.ErrLost
	}
	err := d.engine.put(ctx, n, d.m.seq)
	d.ended = err == nil || errors.Is(err, engine.ErrLost)
	if err != nil {
		d.engine.index.giveBack(d.entry, d.taking)
		return fmt.Errorf("storing what became of the callback of task %s: %w", d.m.meta.ID, err)
	}
	return nil
}

// Done implements engine.Delivery.
func (d *delivery) Done(ctx context.Context) error {
	rec := cloneRecord(d.rec)
	rec.NextAttemptAt = time.Time{}
	if rec.DeliveredAt.IsZero() {
		rec.DeliveredAt = time.Now().UTC()
	}
	n := d.m.next(rec, task.Done)
	n.meta.Holder, n.meta.Ready, n.meta.Finished = "", 0, time.Now().UnixNano()
	var dropped string
	if !d.engine.settings.Load().KeepResults && rec.Queue == "" && n.meta.Size > 0 {
		dropped = n.dropBody()
		n.meta.Dropped = true
	}
	if err := d.end(ctx, n); err != nil {
		return err
	}
	d.engine.dropBody(dropped)
	return nil
}

// Retry implements engine.Delivery.
func (d *delivery) Retry(ctx context.Context, at time.Time) error {
	rec := cloneRecord(d.rec)
	rec.NextAttemptAt = at
	n := d.m.next(rec, task.Delivering)
	n.meta.Ready, n.meta.Order, n.meta.Holder = at.UnixNano(), 0, ""
	return d.end(ctx, n)
}

// Dead implements engine.Delivery.
func (d *delivery) Dead(ctx context.Context) error {
	return d.end(ctx, dead(d.m, cloneRecord(d.rec)))
}

// dead returns the step that gives a callback up.
func dead(m *message, rec *task.Record) *message {
	rec.NextAttemptAt = time.Time{}
	n := m.next(rec, task.Dead)
	n.meta.Holder, n.meta.Ready, n.meta.Finished = "", 0, time.Now().UnixNano()
	return n
}

// Release implements engine.Delivery.
func (d *delivery) Release(ctx context.Context) error {
	n := d.m.next(d.m.rec, task.Delivering)
	n.meta.Holder = ""
	if err := d.end(ctx, n); err != nil {
		return err
	}
	d.engine.index.askAgain(d.engine.index.host(d.m.meta.Host))
	return nil
}

// isLate says that the time in which the callback could be delivered is over.
func (e *Engine) isLate(m *message) bool {
	return m.meta.Finished < time.Now().Add(-e.deliveryWindow()).UnixNano()
}

// deliveryWindow returns how long after its verdict a callback may be delivered.
func (e *Engine) deliveryWindow() time.Duration {
	if window := e.settings.Load().DeliveryWindow; window > 0 {
		return window
	}
	return defaultDeliveryWindow
}

const defaultDeliveryWindow = 30 * 24 * time.Hour

// bury stores that a callback was not delivered in time.
func (e *Engine) bury(ctx context.Context, m *message) error {
	n := dead(m, cloneRecord(m.rec))
	if err := e.put(ctx, n, m.seq); err != nil {
		return err
	}
	if gaveUp := e.settings.Load().GaveUp; gaveUp != nil {
		gaveUp(cloneRecord(n.rec))
	}
	return nil
}
