package sqlite

import (
	"context"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
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
		ready, err := t.readyJobs(j.name, limit)
		if err != nil {
			return err
		}
		for _, q := range ready {
			if job, err := t.start(q, maxStarts); err == nil {
				jobs = append(jobs, job)
			}
		}
		next, _ = t.number("SELECT min(at) FROM task INDEXED BY task_ready WHERE queue = ? AND state = 0", j.name)
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return jobs, next, nil
}

// queuedJob is a job of a queue with its record and, if that is small, its body.
type queuedJob struct {
	row  *row // without its document
	rec  *task.Record
	body []byte // nil if it must be read
	size int    // of all of it, in bytes
}

// readyJobs returns the first jobs of a queue that are ready. It reads those that are not
// cached.
func (t *tx) readyJobs(queue string, limit int) (jobs []*queuedJob, err error) {
	var ready []int64
	t.query("SELECT seq FROM task INDEXED BY task_ready WHERE queue = ? AND state = 0 AND at <= ? ORDER BY at, seq LIMIT ?",
		[]any{queue, t.now, limit}, func(s *sqlite3.Stmt) bool {
			ready = append(ready, s.ColumnInt64(0))
			return true
		})
	for _, seq := range ready {
		if q := t.s.cache.drop(seq); q != nil {
			jobs = append(jobs, q)
			continue
		}
		for _, r := range all(t.conn, " WHERE seq = ?", seq) {
			rec, err := r.record()
			if err != nil {
				return nil, err
			}
			r.doc = nil
			jobs = append(jobs, &queuedJob{row: r, rec: rec, body: smallBody(t.conn, seq, engine.RequestBody, r.request)})
		}
	}
	return jobs, nil
}

// start claims a job. It returns ErrLost if the job is not queued as it was read.
func (t *tx) start(q *queuedJob, maxStarts int) (engine.Job, error) {
	claimed := *q.row
	claimed.place.state, claimed.place.held, claimed.since = running, true, t.now
	claimed.version++
	claimed.starts++
	err := t.step(q.row, claimed.place, `UPDATE task SET state = 1, version = version + 1, starts = starts + 1, max_starts = ?,
		holder = ?, since = ? WHERE seq = ? AND version = ? AND state = 0`,
		engine.MaxStarts(q.rec, maxStarts), t.s.holder, t.now, q.row.seq, q.row.version)
	if err != nil {
		return engine.Job{}, err
	}
	claimed.describe(q.rec)
	l := &lease{s: t.s, row: &claimed}
	t.begun = append(t.begun, l)
	return engine.Job{Record: q.rec, Lease: l, Request: q.body}, nil
}

// maxCached is how much memory the cached jobs of all queues may take, in bytes.
const maxCached = 16 << 20

// jobCache has jobs from their arrival to their claim, so that a claim need not read them.
// It belongs to the writer. A job that is not cached, or no longer, is in the table.
type jobCache struct {
	jobs  map[int64]*queuedJob // by seq
	sizes map[string]int       // by queue
	size  int                  // of all
}

// add caches a job whose document has n bytes. A queue takes at most half of the room that
// the other queues leave: one without workers must not take it all.
func (c *jobCache) add(r *row, rec *task.Record, b *body, n int) {
	const fixed = 2 << 10 // of a small record, about
	q := &queuedJob{row: r, rec: rec, size: fixed + 2*n}
	if b.size <= maxSmall {
		q.body = b.bytes
		q.size += cap(b.bytes)
	}
	taken := c.sizes[rec.Queue]
	if others := c.size - taken; 2*(taken+q.size) > maxCached-others {
		return
	}
	c.jobs[r.seq] = q
	c.sizes[rec.Queue] = taken + q.size
	c.size += q.size
}

// drop removes a job from the cache and returns it. It returns nil if the job is not
// cached.
func (c *jobCache) drop(seq int64) *queuedJob {
	q := c.jobs[seq]
	if q == nil {
		return nil
	}
	delete(c.jobs, seq)
	if c.sizes[q.rec.Queue] -= q.size; c.sizes[q.rec.Queue] == 0 {
		delete(c.sizes, q.rec.Queue)
	}
	c.size -= q.size
	return q
}

// reset empties the cache.
func (c *jobCache) reset() { *c = jobCache{jobs: map[int64]*queuedJob{}, sizes: map[string]int{}} }
