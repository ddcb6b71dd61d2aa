package nats

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// jobs implements engine.JobSource.
type jobs struct {
	engine *Engine
	queue  *backlog
}

// Jobs implements engine.Queues.
func (e *Engine) Jobs(queue string) engine.JobSource {
	e.index.mu.Lock()
	defer e.index.mu.Unlock()
	return &jobs{e, e.index.backlog(e.index.queues, queue)}
}

// Next implements engine.JobSource. The order is approximate while other gateways
// claim jobs of the queue before this one does: then it takes one of the first few, so
// that they do not all try the same one.
func (j *jobs) Next(ctx context.Context, limit, maxStarts int) ([]engine.Job, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := j.engine.available(); err != nil {
			return nil, err
		}
		picked := j.engine.index.pickJobs(j.queue, limit)
		if len(picked) > 0 {
			claimed, err := j.claimOrRelease(ctx, picked, maxStarts)
			if len(claimed) > 0 || err != nil {
				return claimed, err
			}
			continue // others were faster
		}
		select {
		case <-ctx.Done():
		case <-j.engine.closing.Done():
		case <-j.queue.wake:
		}
	}
}

// pickJobs takes up to n jobs that are ready out of a queue's backlog.
func (x *index) pickJobs(b *backlog, n int) (picked []*entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if b.paused {
		return nil
	}
	for b.due.len() > 0 && len(picked) < n {
		e := b.due.items[x.choose(b)]
		x.unplace(e)
		picked = append(picked, e)
	}
	x.call(b) // another worker may want what is left
	return picked
}

// choose returns which of the entries that are due to take: the first, or one of the
// first few while other gateways win races for them.
func (x *index) choose(b *backlog) int {
	return rand.IntN(min(b.due.len(), 1+b.lost*x.gateways())) //nolint:gosec // not secret
}

// gateways counts those that are alive.
func (x *index) gateways() (n int) {
	for _, h := range x.holders {
		if !h.dead {
			n++
		}
	}
	return n
}

// maxLost bounds how far a gateway goes from the first entry to avoid the others.
const maxLost = 8

// claimed notes whether another gateway took a job or a delivery before this one.
func (x *index) claimed(b *backlog, lost bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if lost {
		b.lost = min(b.lost+1, maxLost)
	} else {
		b.lost = max(b.lost-1, 0)
	}
}

// putBack puts entries back that could not be taken, if they are as they were.
func (x *index) putBack(e *entry, seq uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e.seq == seq && x.tasks[e.id] == e {
		x.place(e)
	}
}

// claimOrRelease claims jobs. If ctx ends meanwhile they are released.
func (j *jobs) claimOrRelease(ctx context.Context, picked []*entry, maxStarts int) ([]engine.Job, error) {
	type result struct {
		jobs []engine.Job
		err  error
	}
	done, left := make(chan result), make(chan struct{})
	go func() {
		whole := context.WithoutCancel(ctx)
		claimed, err := j.claim(whole, picked, maxStarts)
		select {
		case done <- result{claimed, err}:
		case <-left:
			for _, job := range claimed {
				if err := job.Lease.Release(whole); err != nil {
					j.engine.log.Debug("job not released", zap.String("task_id", job.Record.ID), zap.Error(err))
				}
			}
		}
	}()
	select {
	case r := <-done:
		return r.jobs, r.err
	case <-ctx.Done():
	}
	select { // most claims are stored in a moment; to release them would be stored too
	case r := <-done:
		return r.jobs, r.err
	case <-time.After(claimGrace):
		close(left)
		return nil, ctx.Err()
	}
}

// claimGrace is how long a claim that is being stored may outlast its context.
const claimGrace = 250 * time.Millisecond

func (j *jobs) claim(ctx context.Context, picked []*entry, maxStarts int) ([]engine.Job, error) {
	all := make([]engine.Job, len(picked))
	errs := make([]error, len(picked))
	var wait sync.WaitGroup
	for i, p := range picked {
		wait.Go(func() {
			seq := j.engine.index.seqOf(p)
			all[i], errs[i] = j.engine.claimJob(ctx, p.id, seq, maxStarts)
			if errs[i] != nil {
				j.engine.index.putBack(p, seq)
			}
		})
	}
	wait.Wait()
	claimed := all[:0]
	var failed error
	for i, job := range all {
		j.engine.index.claimed(j.queue, errors.Is(errs[i], engine.ErrLost))
		switch {
		case errs[i] == nil:
			claimed = append(claimed, job)
		case !errors.Is(errs[i], engine.ErrLost) && !errors.Is(errs[i], engine.ErrNotFound):
			failed = errs[i]
		}
	}
	if len(claimed) > 0 {
		return claimed, nil
	}
	return nil, failed
}

func (x *index) seqOf(e *entry) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return e.seq
}

// claimJob stores that a queued task runs here. It returns ErrLost if another gateway
// came before.
func (e *Engine) claimJob(ctx context.Context, id string, seq uint64, maxStarts int) (engine.Job, error) {
	m, err := e.loadTask(ctx, id, seq)
	if err != nil {
		return engine.Job{}, err
	}
	if m.seq != seq || m.meta.State != task.Queued {
		return engine.Job{}, errWrongSequence
	}
	rec := m.rec
	rec.Starts++
	rec.StartedAt, rec.NextAttemptAt = time.Now().UTC(), time.Time{}
	n := m.next(rec, task.Running)
	n.meta.Holder, n.meta.MaxStarts = e.id, maxStarts
	if n.meta.Order == 0 {
		n.meta.Order = seq
	}
	l := e.newLease(n)
	if err := e.put(ctx, n, seq); err != nil {
		l.end()
		return engine.Job{}, err
	}
	return engine.Job{Record: cloneRecord(n.rec), Lease: l}, nil
}
