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

// memLease is the lease of a waiting client's task or of a job.
type memLease struct {
	e    *memEngine
	t    *memTask
	lost func()
}

// step runs a step that ends the lease, if the lease is still held.
func (l *memLease) step(do func() error) error {
	begin := l.e.begin
	if l.e.fault == "full store refuses verdicts" {
		begin = l.e.admit
	}
	if err := begin(); err != nil {
		return err
	}
	defer l.e.mu.Unlock()
	if l.t.holder != l && l.e.fault != "leases are not fenced" {
		return engine.ErrLost
	}
	return do()
}

func (l *memLease) Settle(_ context.Context, rec *task.Record, result io.Reader) error {
	b, err := l.e.body(result)
	if err != nil {
		return err
	}
	return l.step(func() error {
		l.t.rec = clone(rec)
		if l.t.res = nil; rec.Result != nil {
			l.t.rec.Result.Kept, l.t.res = int64(len(*b)), b
		}
		l.e.verdict(l.t)
		return nil
	})
}

func (l *memLease) Requeue(_ context.Context, rec *task.Record, at time.Time) error {
	return l.step(func() error {
		l.t.rec = clone(rec)
		if at.IsZero() {
			at = l.t.place
		}
		l.e.requeue(l.t, at)
		return nil
	})
}

func (l *memLease) Enqueue(_ context.Context, rec *task.Record, body io.Reader, o engine.EnqueueOptions) (string, bool, error) {
	return l.e.enqueue(rec, body, o, l)
}

func (l *memLease) Release(context.Context) error {
	return l.step(func() error { l.release(); return nil })
}

func (l *memLease) release() {
	if l.t.holder = nil; l.t.rec.Queue == "" {
		delete(l.e.tasks, l.t.rec.ID)
		l.e.change()
		return
	}
	if l.e.fault != "released jobs count" {
		l.t.rec.Starts--
	}
	l.e.requeue(l.t, l.t.place)
}

func (l *memLease) OnLost(f func()) {
	l.e.mu.Lock()
	defer l.e.mu.Unlock()
	if l.lost = f; l.t.holder != l {
		go f()
	}
}

func (e *memEngine) Jobs(queue string) engine.JobSource { return &memQueue{e, queue} }

type memQueue struct {
	e     *memEngine
	queue string
}

func (q *memQueue) Next(ctx context.Context, max, maxStarts int) (jobs []engine.Job, err error) {
	err = q.e.until(ctx, func() (bool, error) {
		if q.e.paused[engine.Target{Queue: q.queue}] {
			return false, nil
		}
		ready := q.e.find(func(t *memTask) bool {
			return t.rec.State == task.Queued && t.rec.Queue == q.queue && !t.place.After(time.Now())
		})
		slices.SortStableFunc(ready, func(a, b *memTask) int { return q.order(a, b) })
		for _, t := range ready[:min(max, len(ready))] {
			t.rec.Starts++
			t.rec.StartedAt, t.rec.NextAttemptAt, t.maxStarts = in(0), time.Time{}, engine.MaxStarts(t.rec, maxStarts)
			if q.e.fault == "polls use attempts" {
				t.maxStarts = maxStarts
			}
			l := &memLease{e: q.e, t: t}
			t.holder = l
			q.e.move(t, task.Running)
			jobs = append(jobs, engine.Job{Record: clone(t.rec), Lease: l})
		}
		return len(jobs) > 0, nil
	})
	return jobs, err
}

// order compares two tasks by ready time. A task that was never delayed is ready when
// it arrives.
func (q *memQueue) order(a, b *memTask) int {
	if q.e.fault == "delayed jobs block others" {
		return cmp.Compare(a.arrival, b.arrival)
	}
	ready := func(t *memTask) time.Time {
		if t.place.IsZero() {
			return t.rec.CreatedAt
		}
		return t.place
	}
	return cmp.Or(ready(a).Compare(ready(b)), cmp.Compare(a.arrival, b.arrival))
}
