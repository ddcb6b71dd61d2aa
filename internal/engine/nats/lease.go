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

// lease implements engine.Lease.
type lease struct {
	engine *Engine
	hold   *hold
	mu     sync.Mutex
	m      *message // the running task
	over   bool

	lostMu sync.Mutex
	lost   bool
	onLost func()
}

// claim stores the step with which this gateway begins to run a task.
func (e *Engine) claim(ctx context.Context, m *message, last uint64) (*lease, error) {
	l := &lease{engine: e, m: m}
	l.hold = &hold{token: newID(), lost: l.lose}
	m.meta.Holder, m.meta.Token = e.id, l.hold.token
	e.index.hold(m.meta.ID, l.hold)
	if err := e.put(ctx, m, last); err != nil {
		e.drop(m.meta.ID, l.hold, err) // if the step was stored, maintain finds a task without a lease
		return nil, err
	}
	return l, nil
}

// lose is called when the task has a step that the lease did not store.
func (l *lease) lose() {
	l.lostMu.Lock()
	defer l.lostMu.Unlock()
	if !l.lost && l.onLost != nil {
		go l.onLost()
	}
	l.lost = true
}

// OnLost implements engine.Lease.
func (l *lease) OnLost(f func()) {
	l.lostMu.Lock()
	defer l.lostMu.Unlock()
	if l.onLost = f; l.lost {
		go f()
	}
}

// step stores the last step of the lease. name distinguishes steps, so that a repeated
// step recognizes that it was stored before.
func (l *lease) step(ctx context.Context, m *message, name string, with ...*nats.Msg) error {
	m.meta.Token = l.hold.token + "." + name
	err := l.engine.put(ctx, m, l.m.seq, with...)
	l.over = err == nil || errors.Is(err, engine.ErrLost) && (len(with) == 0 || !l.isCurrent(ctx))
	if l.over && err != nil {
		l.engine.drop(l.m.meta.ID, l.hold, err)
		l.lose()
	}
	return err
}

// isCurrent reports whether the lease's step is still the task's last one.
func (l *lease) isCurrent(ctx context.Context) bool {
	now, err := l.engine.getTask(ctx, l.m.meta.ID)
	return err == nil && now.seq == l.m.seq
}

// Claim implements engine.Acceptor.
func (e *Engine) Claim(ctx context.Context, rec *task.Record) (engine.Lease, error) {
	if err := e.Ready(); err != nil {
		return nil, err
	}
	l, err := e.claim(ctx, &message{rec: cloneRecord(rec), meta: meta{ID: rec.ID, State: task.Running}}, 0)
	if errors.Is(err, engine.ErrLost) {
		err = fmt.Errorf("%w: a task with this ID exists", engine.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("claiming the task %s: %w", rec.ID, err)
	}
	return l, nil
}

// Settle implements engine.Lease.
func (l *lease) Settle(ctx context.Context, rec *task.Record, result io.Reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return engine.ErrLost
	}
	m := l.engine.settled(l.m, cloneRecord(rec))
	if rec.Result != nil {
		if err := l.engine.readBody(ctx, m, result, true); err != nil {
			return err
		}
	}
	body, name := m.meta.Body, "settle."+string(rec.Status)
	kept(m)
	err := l.step(ctx, m, name)
	if errors.Is(err, engine.ErrFull) && m.meta.Size > 0 { // store the verdict without the result
		m.clearBody()
		kept(m)
		err = l.step(ctx, m, name)
	}
	if m.meta.Body != body || err != nil && !errors.Is(err, engine.ErrUnavailable) { // an unavailable cluster may have stored it
		l.engine.discard(ctx, body)
	}
	if err != nil {
		return fmt.Errorf("settling the task %s: %w", m.meta.ID, err)
	}
	if rec.Result != nil {
		rec.Result.Kept = m.meta.Size
	}
	return nil
}

// kept sets the size of the stored result in the record.
func kept(m *message) {
	if m.rec.Result != nil {
		result := *m.rec.Result
		result.Kept = m.meta.Size
		m.rec.Result = &result
	}
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
func (l *lease) Requeue(ctx context.Context, rec *task.Record, at time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return engine.ErrLost
	}
	rec = cloneRecord(rec)
	m := l.m.next(rec, task.Queued)
	rec.StartedAt, rec.NextAttemptAt = time.Time{}, at
	if !at.IsZero() {
		m.meta.Ready, m.meta.Order = at.UnixNano(), 0
	}
	if err := l.step(ctx, m, "requeue"); err != nil {
		return fmt.Errorf("requeueing the task %s: %w", m.meta.ID, err)
	}
	return nil
}

// Release implements engine.Lease.
func (l *lease) Release(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return engine.ErrLost
	}
	m := &message{meta: meta{ID: l.m.meta.ID, State: removed}}
	if l.m.meta.Queue != "" {
		rec := cloneRecord(l.m.rec)
		rec.Starts--
		rec.StartedAt = time.Time{}
		m = l.m.next(rec, task.Queued)
	}
	if err := l.step(ctx, m, "release"); err != nil {
		return fmt.Errorf("releasing the task %s: %w", m.meta.ID, err)
	}
	return nil
}
