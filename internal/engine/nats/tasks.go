package nats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Get implements engine.Tasks.
func (e *Engine) Get(ctx context.Context, id string) (*task.Record, error) {
	m, err := e.getTask(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("getting the task %s: %w", id, err)
	}
	return m.rec, nil
}

// Open implements engine.Tasks.
func (e *Engine) Open(ctx context.Context, id string, part engine.Part) (io.ReadSeekCloser, error) {
	m, err := e.getTask(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("opening a body of the task %s: %w", id, err)
	}
	isRequest := m.meta.State == task.Queued || m.meta.State == task.Running && m.meta.Queue != ""
	if isRequest != (part == engine.RequestBody) || !isRequest && m.rec.Result == nil {
		return nil, fmt.Errorf("opening a body of the task %s: %w", id, engine.ErrNotFound)
	}
	return e.body(ctx, m)
}

// Wait implements engine.Tasks.
func (e *Engine) Wait(ctx context.Context, id string, since uint64) (*task.Record, error) {
	changed := make(chan struct{}, 1)
	e.index.watch(id, changed)
	defer e.index.endWatch(id, changed)
	for {
		rec, err := e.Get(ctx, id)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil || rec.Version != since {
			return rec, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-e.closing.Done():
			return nil, e.available()
		case <-changed:
		}
	}
}

func (x *index) watch(id string, changed chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.waiters[id] = append(x.waiters[id], changed)
}

func (x *index) endWatch(id string, changed chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	left := slices.DeleteFunc(x.waiters[id], func(c chan struct{}) bool { return c == changed })
	if x.waiters[id] = left; len(left) == 0 {
		delete(x.waiters, id)
	}
}

// actTries limits how often an action is retried on a task that changes at the same
// time.
const actTries = 20

// Act implements engine.Tasks.
func (e *Engine) Act(ctx context.Context, id string, a engine.Action) error {
	var err error
	for range actTries {
		if err = e.actOnce(ctx, id, a); !errors.Is(err, engine.ErrLost) {
			break
		}
	}
	if errors.Is(err, engine.ErrLost) {
		err = e.unavailable(err)
	}
	if err != nil {
		return fmt.Errorf("changing the task %s: %w", id, err)
	}
	return nil
}

// actOnce returns ErrLost if the task changed after it was read.
func (e *Engine) actOnce(ctx context.Context, id string, a engine.Action) error {
	m, err := e.getTask(ctx, id)
	if err != nil {
		return err
	}
	if !applies(a.Kind, m.meta.State) {
		return engine.ErrEnded
	}
	rec := m.rec
	var n *message
	switch a.Kind {
	case engine.Cancel:
		n = failed(m, a.Reason)
	case engine.RetryNow:
		rec.NextAttemptAt = time.Now().UTC()
		n = m.next(rec, task.Delivering)
		n.meta.Ready = rec.NextAttemptAt.UnixNano()
		switch {
		case m.meta.Holder == "" && e.index.isPaused(rec.CallbackHost):
			return engine.ErrPaused
		case m.meta.Holder != "" || m.meta.Ready <= n.meta.Ready:
			return nil // an attempt is in flight, or already due
		}
	case engine.Stop:
		n = m.next(rec, task.Dead)
	case engine.Redeliver:
		if n, err = redelivered(m, a); err != nil {
			return err
		}
	case engine.Delete:
		n = removal(id)
	default:
		return fmt.Errorf("there is no action %d", a.Kind)
	}
	return e.put(ctx, n, m.seq)
}

func applies(kind engine.ActionKind, state task.State) bool {
	switch kind {
	case engine.Cancel:
		return state == task.Queued || state == task.Running
	case engine.RetryNow, engine.Stop:
		return state == task.Delivering
	default:
		return state == task.Done || state == task.Dead
	}
}

// redelivered returns the step that makes the callback of a finished task due again.
func redelivered(m *message, a engine.Action) (*message, error) {
	rec := m.rec
	switch {
	case rec.Callback == nil:
		return nil, engine.ErrEnded
	case m.dropped():
		return nil, engine.ErrNotKept
	}
	now := time.Now().UTC()
	rec.Redeliver(now)
	if a.URL != "" {
		callback := *rec.Callback
		callback.URL = a.URL
		rec.Callback, rec.CallbackHost = &callback, a.Host
	}
	n := m.next(rec, task.Delivering)
	// The delivery window starts again.
	n.meta.Finished, n.meta.Ready, n.meta.Order = now.UnixNano(), now.UnixNano(), 0
	return n, nil
}

// Pause implements engine.Tasks.
func (e *Engine) Pause(ctx context.Context, t engine.Target, paused bool) error {
	subject := pauseSubject + "host." + token(t.Host)
	if t.Queue != "" {
		subject = pauseSubject + "queue." + token(t.Queue)
	}
	if _, err := e.store(ctx, newMessage(subject, pauseMeta{t, paused}, 0)); err != nil {
		return fmt.Errorf("pausing: %w", err)
	}
	e.index.pause(t, paused)
	return nil
}

func (x *index) isPaused(host string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := x.hosts[host]
	return b != nil && b.state.Paused
}

func (x *index) pause(t engine.Target, paused bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	b := x.host(t.Host)
	if t.Queue != "" {
		b = x.queue(t.Queue)
	}
	b.state.Paused = paused
	if !paused {
		b.state.Failures, b.state.FailingSince = 0, time.Time{}
	}
	b.isReported = b.isReported && paused
	x.report(b)
	signal(b.wake)
}
