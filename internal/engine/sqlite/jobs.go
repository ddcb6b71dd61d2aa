package sqlite

import (
	"context"
	"slices"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// queue is the in-memory state of a queue, guarded by store.mu.
type queue struct {
	id      int64
	name    string
	paused  bool
	queued  int64
	running int64
	waiters []waiter // workers, the longest waiting first
}

// ready wakes workers for n jobs that are ready or may be. store.mu is held.
func (q *queue) ready(n int) {
	for ; n > 0 && len(q.waiters) > 0; n-- {
		q.waiters[0] <- struct{}{} // never blocks: it has room for one, and the waiter is removed from the list
		q.waiters = q.waiters[1:]
	}
}

// jobSource implements [engine.JobSource].
type jobSource struct {
	s    *store
	name string
}

// Jobs implements [engine.Queues].
func (s *store) Jobs(name string) engine.JobSource { return &jobSource{s, name} }

// Next implements [engine.JobSource].
func (j *jobSource) Next(ctx context.Context, limit, maxStarts int) ([]engine.Job, error) {
	q, err := j.queue(ctx)
	if err != nil {
		return nil, err
	}
	for {
		jobs, err := j.next(ctx, q, limit, maxStarts)
		if len(jobs) == 0 && err == nil {
			continue
		}
		// Another worker tries to claim the remaining jobs and sets its timer
		// accordingly.
		j.s.mu.Lock()
		if q.queued > 0 {
			q.ready(1)
		}
		j.s.mu.Unlock()
		return jobs, err
	}
}

// next claims ready jobs, or waits until a job may be ready.
func (j *jobSource) next(ctx context.Context, q *queue, limit, maxStarts int) ([]engine.Job, error) {
	w := make(waiter, 1)
	j.s.mu.Lock()
	q.waiters = append(q.waiters, w)
	try := q.queued > 0 && !q.paused
	j.s.mu.Unlock()
	woken := false
	defer func() {
		j.s.mu.Lock()
		defer j.s.mu.Unlock()
		if i := slices.Index(q.waiters, w); i >= 0 {
			q.waiters = slices.Delete(q.waiters, i, i+1)
		} else if !woken {
			q.ready(1) // passes its wake-up on to another worker
		}
	}()
	var timer <-chan time.Time
	if try {
		jobs, next, err := j.claim(ctx, q, limit, maxStarts)
		if len(jobs) > 0 || err != nil {
			return jobs, err
		}
		if next > 0 {
			t := time.NewTimer(time.Until(time.Unix(0, next)))
			defer t.Stop()
			timer = t.C
		}
	}
	select {
	case <-w:
		woken = true
	case <-timer:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-j.s.stop:
		return nil, errClosed
	}
	return nil, nil
}

// queue returns the queue. It stores a new queue.
func (j *jobSource) queue(ctx context.Context) (q *queue, err error) {
	j.s.mu.Lock()
	q = j.s.queueNames[j.name]
	j.s.mu.Unlock()
	if q != nil {
		return q, nil
	}
	found := new(*queue)
	err = j.s.update(ctx, func(t *tx) error {
		q, err := t.queue(j.name)
		*found = q
		return err
	})
	if err != nil {
		return nil, err
	}
	return *found, nil
}

// claims is the outcome of a claim of jobs.
type claims struct {
	jobs []engine.Job
	next int64 // when the next job is ready if none was; 0 if there is none
}

// claim takes up to limit ready jobs.
func (j *jobSource) claim(ctx context.Context, q *queue, limit, maxStarts int) ([]engine.Job, int64, error) {
	c := new(claims)
	err := j.s.updateOrUndo(ctx, func(t *tx) error {
		*c = claims{}
		return t.claim(q, limit, maxStarts, c)
	}, func() {
		for _, job := range c.jobs {
			job.Lease.(*lease).abandon()
		}
	})
	if err != nil {
		return nil, 0, err
	}
	return c.jobs, c.next, nil
}

func (t *tx) claim(q *queue, limit, maxStarts int, c *claims) error {
	t.s.mu.Lock()
	paused := q.paused
	t.s.mu.Unlock()
	if paused {
		return nil
	}
	rows, err := all(t.conn, " INDEXED BY task_ready WHERE queue = ? AND state = 0 AND at <= ? ORDER BY at, seq LIMIT ?", q.id, t.now, limit)
	if err != nil {
		return err
	}
	if len(rows) == 0 {
		c.next, _, err = t.number("SELECT min(at) FROM task INDEXED BY task_ready WHERE queue = ? AND state = 0", q.id)
		return err
	}
	var leases []*lease
	for _, r := range rows {
		err := t.exec(`UPDATE task SET state = 1, version = version + 1, starts = starts + 1, max_starts = ?, holder = ?, since = ?
			WHERE seq = ?`, max(1, maxStarts), t.s.holder, t.now, r.seq)
		if err != nil {
			return err
		}
		from := r.place
		r.place.state, r.place.held, r.since = running, true, t.now
		r.version++
		r.starts++
		rec, err := r.record()
		if err != nil {
			return err
		}
		l := &lease{s: t.s, id: r.id, seq: r.seq, version: r.version, place: r.place}
		t.move(r.id, from, r.place)
		leases = append(leases, l)
		request, err := smallBody(t.conn, r.seq, engine.RequestBody, r.request)
		if err != nil {
			return err
		}
		c.jobs = append(c.jobs, engine.Job{Record: rec, Lease: l, Request: request})
	}
	t.after(func() {
		for _, l := range leases {
			t.s.leases[l.seq] = l
		}
	})
	return nil
}
