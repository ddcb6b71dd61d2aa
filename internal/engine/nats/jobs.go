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
	claimed, err := each(picked, func(c candidate) (engine.Job, error) {
		h, err := j.engine.begin(ctx, c, func(m *message) (*message, error) {
			m.rec.Starts++
			m.rec.StartedAt, m.rec.NextAttemptAt = time.Now().UTC(), time.Time{}
			n := m.next(m.rec, task.Running)
			n.meta.MaxStarts = engine.MaxStarts(m.rec, maxStarts)
			return n, nil
		})
		if err != nil {
			return engine.Job{}, err
		}
		return engine.Job{Record: cloneRecord(h.m.rec), Lease: lease{h}}, nil
	})
	if len(claimed) > 0 {
		return claimed, nil
	}
	return nil, err
}

// begin takes a waiting task: it stores the step that next returns. It returns ErrLost
// if another gateway took the task first.
func (e *Engine) begin(ctx context.Context, c candidate, next func(*message) (*message, error)) (*held, error) {
	m, err := e.getStep(ctx, c)
	if err == nil {
		m, err = next(m)
	}
	if err != nil {
		e.index.drop(c.id, nil, err)
		return nil, err
	}
	m.meta.Order = cmp.Or(m.meta.Order, c.seq) // its place, if it has to wait again
	return e.hold(ctx, m, c.seq)
}

// each calls do for each candidate, some of them at the same time. It leaves out the
// tasks that other gateways have taken or removed. It returns the results, and an error
// if there was another one.
func each[T any](all []candidate, do func(candidate) (T, error)) (results []T, err error) {
	found := make([]T, len(all))
	errs := make([]error, len(all))
	slots := make(chan struct{}, maxConcurrent)
	var wait sync.WaitGroup
	for i, c := range all {
		slots <- struct{}{}
		wait.Go(func() {
			found[i], errs[i] = do(c)
			<-slots
		})
	}
	wait.Wait()
	for i, e := range errs {
		switch {
		case e == nil:
			results = append(results, found[i])
		case !errors.Is(e, engine.ErrLost) && !errors.Is(e, engine.ErrNotFound):
			err = e
		}
	}
	return results, err
}

// maxConcurrent limits how many tasks one call reads or takes at the same time.
const maxConcurrent = 64
