package sqlite

import (
	"context"
	"slices"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// queue has the workers that wait for jobs of a queue. store.mu guards it.
type queue struct {
	waiters []waiter // the longest waiting first
}

// queue returns the queue of a name. store.mu is held.
func (s *store) queue(name string) *queue {
	q := s.queues[name]
	if q == nil {
		q = new(queue)
		s.queues[name] = q
	}
	return q
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
	q    *queue
}

// Jobs implements [engine.Queues].
func (s *store) Jobs(name string) engine.JobSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &jobSource{s, name, s.queue(name)}
}

// Next implements [engine.JobSource].
func (j *jobSource) Next(ctx context.Context, limit, maxStarts int) ([]engine.Job, error) {
	for {
		jobs, err := j.next(ctx, limit, maxStarts)
		if len(jobs) > 0 || err != nil {
			return jobs, err
		}
	}
}

// next claims ready jobs, or waits until a job may be ready.
func (j *jobSource) next(ctx context.Context, limit, maxStarts int) ([]engine.Job, error) {
	w := make(waiter, 1)
	j.s.mu.Lock()
	j.q.waiters = append(j.q.waiters, w)
	j.s.mu.Unlock()
	woken := false
	defer func() {
		j.s.mu.Lock()
		defer j.s.mu.Unlock()
		if i := slices.Index(j.q.waiters, w); i >= 0 {
			j.q.waiters = slices.Delete(j.q.waiters, i, i+1)
		} else if !woken {
			j.q.ready(1) // passes its wake-up on to another worker
		}
	}()
	jobs, next, err := j.claim(ctx, limit, maxStarts)
	if err != nil {
		return nil, err
	}
	if len(jobs) > 0 {
		if next > 0 {
			// Another worker tries to claim the remaining jobs and sets its timer
			// accordingly.
			j.s.mu.Lock()
			j.q.ready(1)
			j.s.mu.Unlock()
		}
		return jobs, nil
	}
	most := time.Hour
	if next > 0 {
		most = time.Until(time.Unix(0, next))
	}
	woken, err = j.s.wait(ctx, w, most)
	return nil, err
}

// claim takes up to limit ready jobs. next is when the first of the remaining jobs is
// ready; 0 if there is none.
func (j *jobSource) claim(ctx context.Context, limit, maxStarts int) (jobs []engine.Job, next int64, err error) {
	s := j.s
	err = s.update(ctx, func(t *tx) error {
		s.mu.Lock()
		paused := s.paused[engine.Target{Queue: j.name}]
		s.mu.Unlock()
		if paused {
			return nil
		}
		rows, err := all(t.conn, " INDEXED BY task_ready WHERE queue = ? AND state = 0 AND at <= ? ORDER BY at, seq LIMIT ?", j.name, t.now, limit)
		if err != nil {
			return err
		}
		if jobs, err = s.jobs(t.conn, rows, t.now); err != nil {
			return err
		}
		for _, job := range jobs {
			if err := t.start(job.Lease.(*lease), engine.MaxStarts(job.Record, maxStarts)); err != nil {
				return err
			}
		}
		next, _, err = t.number("SELECT min(at) FROM task INDEXED BY task_ready WHERE queue = ? AND state = 0", j.name)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return jobs, next, nil
}

// jobs returns queued tasks as they are once they are claimed.
func (s *store) jobs(c *conn, rows []*row, now int64) (jobs []engine.Job, err error) {
	for _, r := range rows {
		r.place.state, r.place.held, r.since = running, true, now
		r.version++
		r.starts++
		rec, err := r.record()
		if err != nil {
			return nil, err
		}
		r.doc = nil
		request, err := smallBody(c, r.seq, engine.RequestBody, r.request)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, engine.Job{Record: rec, Lease: &lease{s: s, row: r}, Request: request})
	}
	return jobs, nil
}

// start claims a job.
func (t *tx) start(l *lease, maxStarts int) error {
	from := *l.row
	from.place.state, from.place.held = queued, false
	t.move(&from, l.row.place)
	t.after(func() { t.s.leases[l.row.seq] = l })
	return t.exec("UPDATE task SET state = 1, version = version + 1, starts = starts + 1, max_starts = ?, holder = ?, since = ? WHERE seq = ?",
		maxStarts, t.s.holder, t.now, l.row.seq)
}
