package enginetest

import (
	"cmp"
	"context"
	"io"
	"slices"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// dueOf returns the due deliveries of a host in order of their due time. A paused host
// has none.
func (e *memEngine) dueOf(host string) []*memTask {
	if e.paused[engine.Target{Host: host}] {
		return nil
	}
	due := e.find(func(t *memTask) bool {
		return t.rec.State == task.Delivering && t.rec.CallbackHost == host && !t.rec.NextAttemptAt.After(time.Now()) &&
			(t.holder == nil || e.fault == "deliveries are taken twice")
	})
	at := func(t *memTask) time.Time {
		if t.rec.NextAttemptAt.IsZero() {
			return t.since
		}
		return t.rec.NextAttemptAt
	}
	slices.SortStableFunc(due, func(a, b *memTask) int { return at(a).Compare(at(b)) })
	return due
}

func (e *memEngine) state(host string) engine.HostState {
	s := e.hosts[host]
	s.Host, s.Paused = host, e.paused[engine.Target{Host: host}]
	return s
}

func (e *memEngine) DueHosts(ctx context.Context, max int) (due []engine.HostDue, err error) {
	err = e.until(ctx, func() (bool, error) {
		hosts := map[string]bool{}
		for _, t := range e.tasks {
			hosts[t.rec.CallbackHost] = true
		}
		for h := range hosts {
			ts := e.dueOf(h)
			if e.quiet[h] || len(ts) == 0 || len(due) == max {
				continue
			}
			e.quiet[h] = e.fault != "hosts are reported twice"
			d := engine.HostDue{HostState: e.state(h), Due: len(ts)}
			for _, t := range ts {
				d.Trusted = d.Trusted || t.rec.Callback.Trusted
			}
			due = append(due, d)
		}
		return len(due) > 0, nil
	})
	return due, err
}

func (e *memEngine) Take(_ context.Context, host string, n int) ([]engine.Delivery, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	due := e.dueOf(host)
	if len(due) < n && e.fault != "hosts are not reported again" {
		delete(e.quiet, host)
	}
	var ds []engine.Delivery
	for _, t := range due[:min(n, len(due))] {
		d := &memDelivery{e: e, t: t, rec: clone(t.rec)}
		t.holder = d
		ds = append(ds, d)
	}
	return ds, nil
}

func (e *memEngine) SaveHosts(_ context.Context, hosts []engine.HostState) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.mu.Unlock()
	for _, h := range hosts {
		e.hosts[h.Host] = h
	}
	return nil
}

// memDelivery is a taken delivery.
type memDelivery struct {
	e   *memEngine
	t   *memTask
	rec *task.Record
}

func (d *memDelivery) Record() *task.Record { return d.rec }

func (d *memDelivery) Result(context.Context) (io.ReadCloser, error) {
	if err := d.e.begin(); err != nil {
		return nil, err
	}
	defer d.e.mu.Unlock()
	return reader(d.t.res)
}

// end ends the delivery if it is still current.
func (d *memDelivery) end(do func()) error {
	if err := d.e.begin(); err != nil {
		return err
	}
	defer d.e.mu.Unlock()
	if d.t.holder != d && d.e.fault != "deliveries are not fenced" {
		return engine.ErrLost
	}
	d.t.holder = nil
	do()
	return nil
}

// ended stores the record of a callback that needs no more attempts.
func (d *memDelivery) ended(to task.State) error {
	return d.end(func() {
		d.t.rec = clone(d.rec)
		d.t.rec.NextAttemptAt = time.Time{}
		if to == task.Done && !d.e.set.KeepResults && d.t.rec.Queue == "" {
			if d.t.res != nil && len(*d.t.res) > 0 {
				d.t.res = nil
			}
		}
		d.e.move(d.t, to)
	})
}

func (d *memDelivery) Done(context.Context) error { return d.ended(task.Done) }
func (d *memDelivery) Dead(context.Context) error { return d.ended(task.Dead) }

func (d *memDelivery) Retry(_ context.Context, at time.Time) error {
	return d.end(func() {
		since := d.t.since
		d.t.rec = clone(d.rec)
		d.t.rec.NextAttemptAt = at
		d.e.move(d.t, task.Delivering)
		d.t.since = since
	})
}

func (d *memDelivery) Release(context.Context) error {
	return d.end(func() {
		delete(d.e.quiet, d.t.rec.CallbackHost)
		d.e.change()
	})
}

func (e *memEngine) NextRun(_ context.Context, schedule string, first time.Time) (engine.Run, error) {
	if err := e.begin(); err != nil {
		return engine.Run{}, err
	}
	defer e.mu.Unlock()
	if _, ok := e.runs[schedule]; !ok {
		e.runs[schedule] = engine.Run{Next: first}
	}
	return e.runs[schedule], nil
}

func (e *memEngine) Advance(_ context.Context, schedule string, due, next time.Time) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if r, ok := e.runs[schedule]; !ok || !r.Next.Equal(due) && e.fault != "schedules are not fenced" {
		return engine.ErrLost
	}
	e.runs[schedule] = engine.Run{Last: due, Next: next}
	return nil
}

func (e *memEngine) Runs(context.Context) (map[string]engine.Run, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	runs := map[string]engine.Run{}
	for s, r := range e.runs {
		runs[s] = r
	}
	return runs, nil
}

func (e *memEngine) Keys(_ context.Context, after engine.Cursor, limit int) ([]engine.StoredKey, engine.Cursor, error) {
	if err := e.begin(); err != nil {
		return nil, "", err
	}
	defer e.mu.Unlock()
	var all []engine.StoredKey
	for _, k := range e.keys {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b engine.StoredKey) int { return cmp.Compare(a.Hash, b.Hash) })
	return sortedPage(all, after, limit)
}

func (e *memEngine) ImportKey(_ context.Context, k engine.StoredKey) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if _, ok := e.keys[k.Hash]; !ok {
		e.keys[k.Hash] = k
	}
	return nil
}
