package nats

import (
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
	_, err := h.engine.getStep(ctx, candidate{place{id: h.m.meta.ID}, h.m.seq})
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

// OnLost implements engine.Lease.
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

// Settle implements engine.Lease.
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

// Requeue implements engine.Lease.
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

// Release implements engine.Lease.
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
