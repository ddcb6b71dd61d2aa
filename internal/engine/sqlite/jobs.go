package sqlite

import (
	"context"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// queue returns the channel that wakes the workers of a queue. store.mu is held.
func (s *store) queue(name string) chan struct{} {
	q := s.queues[name]
	if q == nil {
		q = make(chan struct{}, 1)
		s.queues[name] = q
	}
	return q
}

// wakeWorker wakes the worker of a queue that has waited the longest. If none waits, it
// wakes the next one that does. store.mu is held.
func (s *store) wakeWorker(name string) { wake(s.queue(name)) }

// wake sends a signal to a receiver, or leaves one for the next receiver.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// jobSource implements [engine.JobSource].
type jobSource struct {
	s     *store
	name  string
	ready chan struct{}
}

// Jobs implements [engine.Queues].
func (s *store) Jobs(name string) engine.JobSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &jobSource{s, name, s.queue(name)}
}

// Next implements [engine.JobSource].
func (j *jobSource) Next(ctx context.Context, limit, maxStarts int) (jobs []engine.Job, err error) {
	next := int64(0)
	defer func() {
		if next > 0 || err != nil || ctx.Err() != nil {
			wake(j.ready) // another worker claims the remaining jobs, or waits for the next one
		}
	}()
	for {
		if jobs, next, err = j.claim(ctx, limit, maxStarts); len(jobs) > 0 || err != nil {
			return jobs, err
		}
		most := time.Hour
		if next > 0 {
			most = time.Until(time.Unix(0, next))
		}
		if err = j.s.wait(ctx, j.ready, most); err != nil {
			return nil, err
		}
	}
}

// claim takes up to limit ready jobs. next is when the first of the remaining jobs is
// ready; 0 if there is none.
func (j *jobSource) claim(ctx context.Context, limit, maxStarts int) (jobs []engine.Job, next int64, err error) {
	err = j.s.update(ctx, func(t *tx) error {
		t.s.mu.Lock()
		paused := t.s.paused[engine.Target{Queue: j.name}]
		t.s.mu.Unlock()
		if paused {
			return nil
		}
		rows := all(t.conn, " INDEXED BY task_ready WHERE queue = ? AND state = 0 AND at <= ? ORDER BY at, seq LIMIT ?", j.name, t.now, limit)
		if jobs, err = t.jobs(rows); err != nil {
			return err
		}
		for _, job := range jobs {
			t.start(job.Lease.(*lease), engine.MaxStarts(job.Record, maxStarts))
		}
		next, _ = t.number("SELECT min(at) FROM task INDEXED BY task_ready WHERE queue = ? AND state = 0", j.name)
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return jobs, next, nil
}

// jobs returns queued tasks with the changes that a claim makes.
func (t *tx) jobs(rows []*row) (jobs []engine.Job, err error) {
	for _, r := range rows {
		r.place.state, r.place.held, r.since = running, true, t.now
		r.version++
		r.starts++
		rec, err := r.record()
		if err != nil {
			return nil, err
		}
		r.doc = nil
		jobs = append(jobs, engine.Job{
			Record: rec, Lease: &lease{s: t.s, row: r}, Request: smallBody(t.conn, r.seq, engine.RequestBody, r.request),
		})
	}
	return jobs, nil
}

// start claims a job.
func (t *tx) start(l *lease, maxStarts int) {
	from := *l.row
	from.place.state, from.place.held = queued, false
	t.move(&from, l.row.place)
	t.after(func() { t.s.leases[l.row.seq] = l })
	t.exec("UPDATE task SET state = 1, version = version + 1, starts = starts + 1, max_starts = ?, holder = ?, since = ? WHERE seq = ?",
		maxStarts, t.s.holder, t.now, l.row.seq)
}
