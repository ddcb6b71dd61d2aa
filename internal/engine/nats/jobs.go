package nats

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

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
	return &jobs{e, e.index.queue(queue)}
}

// Next implements engine.JobSource. The order is approximate while other gateways take
// jobs of the queue too. If ctx ends while claims are being stored, Next waits for
// them, at most some seconds.
func (j *jobs) Next(ctx context.Context, limit, maxStarts int) ([]engine.Job, error) {
	for {
		if err := ctx.Err(); err != nil {
			signal(j.queue.wake) // let another waiting worker look
			return nil, err
		}
		if err := j.engine.available(); err != nil {
			return nil, err
		}
		picked, wait := j.engine.index.pickJobs(j.queue, limit)
		if len(picked) == 0 {
			j.engine.sleep(ctx, j.queue.wake, wait)
			continue
		}
		claimed, err := j.claim(context.WithoutCancel(ctx), picked, maxStarts)
		if len(claimed) > 0 || err != nil {
			return claimed, err
		}
	}
}

// pickJobs takes up to n jobs that are ready out of a queue's backlog.
func (x *index) pickJobs(b *backlog, n int) (picked []candidate, wait time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if picked, wait = x.pick(b, n); len(picked) > 0 && len(b.entries) > 0 {
		signal(b.wake) // another worker may take the rest
	}
	return picked, wait
}

// sleep waits for a signal, at most for d.
func (e *Engine) sleep(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-e.closing.Done():
	case <-wake:
	case <-timer.C:
	}
}

func (j *jobs) claim(ctx context.Context, picked []candidate, maxStarts int) ([]engine.Job, error) {
	return each(picked, func(c candidate) (engine.Job, error) { return j.engine.claimJob(ctx, c, maxStarts) })
}

// each takes the picked tasks concurrently. It leaves out those that other gateways
// have taken, and returns an error only if none was taken.
func each[T any](picked []candidate, take func(candidate) (T, error)) (taken []T, err error) {
	all := make([]T, len(picked))
	errs := make([]error, len(picked))
	var wait sync.WaitGroup
	for i, c := range picked {
		wait.Go(func() { all[i], errs[i] = take(c) })
	}
	wait.Wait()
	for i := range all {
		switch {
		case errs[i] == nil:
			taken = append(taken, all[i])
		case !errors.Is(errs[i], engine.ErrLost) && !errors.Is(errs[i], engine.ErrNotFound):
			err = errs[i]
		}
	}
	if len(taken) > 0 {
		return taken, nil
	}
	return nil, err
}

// claimJob stores the step with which this gateway starts a queued task. It returns
// ErrLost if another gateway claimed the task first.
func (e *Engine) claimJob(ctx context.Context, c candidate, maxStarts int) (engine.Job, error) {
	m, err := e.getStep(ctx, c.id, c.seq, task.Queued)
	if err != nil {
		e.drop(c.id, nil, err)
		return engine.Job{}, err
	}
	rec := m.rec
	rec.Starts++
	rec.StartedAt, rec.NextAttemptAt = time.Now().UTC(), time.Time{}
	n := m.next(rec, task.Running)
	n.meta.MaxStarts, n.meta.Order = engine.MaxStarts(rec, maxStarts), cmp.Or(n.meta.Order, c.seq)
	l, err := e.claim(ctx, n, c.seq)
	if err != nil {
		return engine.Job{}, err
	}
	return engine.Job{Record: cloneRecord(n.rec), Lease: l}, nil
}
