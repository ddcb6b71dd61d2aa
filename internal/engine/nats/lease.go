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

// held is a task that this gateway runs, or whose callback it delivers. The next step of
// the task ends it.
type held struct {
	engine *Engine
	m      *message // the step that began it
	token  string   // of this step. The token of the step that ends it begins with it
	mu     sync.Mutex
	over   bool

	lostMu sync.Mutex
	lost   bool
	onLost func()
}

// hold stores the step with which this gateway begins to run a task or to deliver a
// callback.
func (e *Engine) hold(ctx context.Context, m *message, last uint64) (*held, error) {
	h := &held{engine: e, m: m, token: newID()}
	m.meta.Holder, m.meta.Token = e.id, h.token
	e.index.hold(h)
	if err := e.put(ctx, m, last); err != nil {
		e.index.drop(m.meta.ID, h, err) // if the step was stored, maintain finds a task that is not held
		return nil, err
	}
	return h, nil
}

// end stores the step that ends h. name distinguishes steps, so that a repeated step
// recognizes that it was stored before.
func (h *held) end(ctx context.Context, m *message, name string, with ...*nats.Msg) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return engine.ErrLost
	}
	m.meta.Token = h.token + "." + name
	err := h.engine.put(ctx, m, h.m.seq, with...)
	h.over = err == nil || errors.Is(err, engine.ErrLost) && (len(with) == 0 || !h.isCurrent(ctx))
	if h.over && err != nil {
		h.engine.index.drop(h.m.meta.ID, h, err)
		h.lose()
	}
	return err
}

func (h *held) isOver() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.over
}

// isCurrent reports whether the step that began h is still the task's last one.
func (h *held) isCurrent(ctx context.Context) bool {
	_, err := h.engine.getStep(ctx, candidate{h.m.meta.ID, h.m.seq})
	return err == nil
}

// lose is called when the task has a step that h did not store.
func (h *held) lose() {
	h.lostMu.Lock()
	defer h.lostMu.Unlock()
	if !h.lost && h.onLost != nil {
		go h.onLost()
	}
	h.lost = true
}

// lease implements engine.Lease.
type lease struct{ *held }

func (l lease) OnLost(f func()) {
	l.lostMu.Lock()
	defer l.lostMu.Unlock()
	if l.onLost = f; l.lost {
		go f()
	}
}

// Claim implements engine.Acceptor.
func (e *Engine) Claim(ctx context.Context, rec *task.Record) (engine.Lease, error) {
	if err := e.Ready(); err != nil {
		return nil, err
	}
	h, err := e.hold(ctx, &message{rec: cloneRecord(rec), meta: meta{ID: rec.ID, State: task.Running}}, 0)
	if errors.Is(err, engine.ErrLost) {
		err = fmt.Errorf("%w: a task with this ID exists", engine.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("claiming the task %s: %w", rec.ID, err)
	}
	return lease{h}, nil
}

func (l lease) Settle(ctx context.Context, rec *task.Record, result io.Reader) error {
	m := l.engine.settled(l.m, cloneRecord(rec))
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
func (e *Engine) settled(m *message, rec *task.Record) *message {
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
