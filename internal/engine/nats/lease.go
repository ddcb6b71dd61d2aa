package nats

import (
	"cmp"
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

// inFlight is a task that this gateway runs, or whose callback it attempts. The next step
// of the task ends it.
type inFlight struct {
	engine *Engine
	m      *message // the step that began it
	token  string   // of this step, and a prefix of the token of the step that ends it
	mu     sync.Mutex
	over   bool
	lost   context.Context // ends when the task has a step that f did not store
	lose   context.CancelFunc
}

// start stores the step with which this gateway begins to run a task or to attempt a
// delivery.
func (e *Engine) start(ctx context.Context, m *message, last uint64) (*inFlight, error) {
	f := &inFlight{engine: e, m: m, token: newID()}
	f.lost, f.lose = context.WithCancel(context.Background())
	m.meta.Holder, m.meta.Token = e.id, f.token
	e.index.start(f)
	if err := e.put(ctx, m, last); err != nil {
		e.index.drop(m.meta.ID, f, err) // if the step was stored, maintain finds the task
		return nil, err
	}
	return f, nil
}

// end stores the step that ends f. name distinguishes steps, so that a repeated step
// recognizes that it was stored before.
func (f *inFlight) end(ctx context.Context, m *message, name string, with ...*nats.Msg) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		return engine.ErrLost
	}
	m.meta.Token = f.token + "." + name
	err := f.engine.put(ctx, m, f.m.seq, with...)
	f.over = err == nil || errors.Is(err, engine.ErrLost)
	if f.over && err != nil {
		f.engine.index.drop(f.m.meta.ID, f, err)
		f.lose()
	}
	return err
}

func (f *inFlight) isOver() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over
}

// lease implements engine.Lease.
type lease struct{ *inFlight }

func (l lease) OnLost(f func()) { context.AfterFunc(l.lost, f) }

// Claim implements engine.Acceptor.
func (e *Engine) Claim(ctx context.Context, rec *task.Record) (engine.Lease, error) {
	if err := e.Ready(); err != nil {
		return nil, err
	}
	f, err := e.start(ctx, &message{rec: cloneRecord(rec), meta: meta{ID: rec.ID, State: task.Running}}, 0)
	if errors.Is(err, engine.ErrLost) {
		err = fmt.Errorf("%w: a task with this ID exists", engine.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("claiming the task %s: %w", rec.ID, err)
	}
	return lease{f}, nil
}

func (l lease) Settle(ctx context.Context, rec *task.Record, result io.Reader) error {
	m := settled(l.m, cloneRecord(rec))
	if rec.Result != nil {
		if err := l.engine.readBody(ctx, m, result, true); err != nil {
			return err
		}
	}
	body := m.meta.Body
	settle := func() error {
		if rec.Result != nil {
			rec.Result.Kept = m.meta.Size
		}
		return l.end(ctx, m, "settle."+string(rec.Status))
	}
	err := settle()
	if errors.Is(err, engine.ErrFull) && m.meta.Size > 0 { // store the verdict without the result
		m.clearBody()
		err = settle()
	}
	l.engine.discardUnused(ctx, body, m, err)
	if err != nil {
		return fmt.Errorf("settling the task %s: %w", m.meta.ID, err)
	}
	return nil
}

// settled returns the step that gives a task its verdict, without a result.
func settled(m *message, rec *task.Record) *message {
	now := time.Now().UTC()
	if rec.FinishedAt.IsZero() {
		rec.FinishedAt = now
	}
	state := task.Done
	if rec.Callback != nil {
		state = task.Delivering
	}
	n := m.next(rec, state)
	n.clearBody()
	n.meta.Finished, n.meta.Ready, n.meta.Order = fromTime(rec.FinishedAt), now.UnixNano(), 0
	return n
}

func (l lease) Requeue(ctx context.Context, rec *task.Record, at time.Time) error {
	rec = cloneRecord(rec)
	m := l.m.next(rec, task.Queued)
	rec.StartedAt, rec.NextAttemptAt = time.Time{}, at
	if !at.IsZero() {
		m.meta.Ready, m.meta.Order = at.UnixNano(), 0
	}
	if err := l.end(ctx, m, "requeue"); err != nil {
		return fmt.Errorf("requeueing the task %s: %w", m.meta.ID, err)
	}
	return nil
}

func (l lease) Release(ctx context.Context) error {
	m := removal(l.m.meta.ID)
	if l.m.meta.Queue != "" {
		rec := cloneRecord(l.m.rec)
		rec.Starts--
		rec.StartedAt = time.Time{}
		m = l.m.next(rec, task.Queued)
	}
	if err := l.end(ctx, m, "release"); err != nil {
		return fmt.Errorf("releasing the task %s: %w", m.meta.ID, err)
	}
	return nil
}

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
		picked, wait := j.engine.index.pick(j.engine.index.queue, j.queue.name, limit)
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
		f, err := j.engine.begin(ctx, c, func(m *message) (*message, error) {
			m.rec.Starts++
			m.rec.StartedAt, m.rec.NextAttemptAt = time.Now().UTC(), time.Time{}
			n := m.next(m.rec, task.Running)
			n.meta.MaxStarts = engine.MaxStarts(m.rec, maxStarts)
			return n, nil
		})
		if err != nil {
			return engine.Job{}, err
		}
		return engine.Job{Record: cloneRecord(f.m.rec), Lease: lease{f}}, nil
	})
	if len(claimed) > 0 {
		return claimed, nil
	}
	return nil, err
}

// begin takes a waiting task: it stores the step that next returns. It returns ErrLost
// if another gateway took the task first.
func (e *Engine) begin(ctx context.Context, c candidate, next func(*message) (*message, error)) (*inFlight, error) {
	m, err := e.getStep(ctx, c)
	if err == nil {
		m, err = next(m)
	}
	if err != nil {
		e.index.drop(c.id, nil, err)
		return nil, err
	}
	m.meta.Order = cmp.Or(m.meta.Order, c.seq) // a released task keeps its place in the order
	return e.start(ctx, m, c.seq)
}

// each calls do for each candidate, up to maxConcurrent at the same time. It leaves out
// the tasks that other gateways have taken or removed. It returns the results, and the
// last of all other errors.
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
