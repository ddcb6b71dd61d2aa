package nats

import (
	"bytes"
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
	token  string // begins those of all steps that the lease makes
	mu     sync.Mutex
	m      *message // the running task
	over   bool

	lostMu sync.Mutex
	lost   bool
	onLost func()
}

// newLease returns the lease of a task that this gateway is about to claim.
func (e *Engine) newLease(m *message) *lease {
	l := &lease{engine: e, token: newID(), m: m}
	m.meta.Token = l.token
	e.index.mu.Lock()
	e.index.leases[m.meta.ID] = l
	e.index.mu.Unlock()
	return l
}

// end says that nobody needs to be told of the lease any more.
func (l *lease) end() {
	l.over = true
	x := l.engine.index
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.leases[l.m.meta.ID] == l {
		delete(x.leases, l.m.meta.ID)
	}
}

// lose is called when another step was made of the task than the lease's.
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

// step stores what the lease ends with. name tells steps apart: a step that is
// repeated finds out that it was stored before.
func (l *lease) step(ctx context.Context, m *message, name string, with ...*nats.Msg) error {
	m.meta.Token = l.token + "." + name
	msg, err := m.encode()
	if err != nil {
		return err
	}
	expect(msg, l.m.seq)
	if err := l.engine.putMessages(ctx, m, append(with, msg)...); err != nil {
		if errors.Is(err, engine.ErrLost) && len(with) == 0 {
			l.end()
			l.lose()
		}
		return err
	}
	l.end()
	return nil
}

// Claim implements engine.Acceptor.
func (e *Engine) Claim(ctx context.Context, rec *task.Record) (engine.Lease, error) {
	if err := e.Ready(); err != nil {
		return nil, err
	}
	rec = cloneRecord(rec)
	m := &message{rec: rec, meta: meta{
		ID: rec.ID, State: task.Running, Host: hostOf(rec), Trusted: isTrusted(rec),
		Created: fromTime(rec.CreatedAt), Holder: e.id,
	}}
	l := e.newLease(m)
	if err := e.put(ctx, m, 0); err != nil {
		l.end() // if it was stored, keepHouse finds that it has no lease
		if errors.Is(err, engine.ErrLost) {
			err = fmt.Errorf("%w: a task with the ID %s exists", engine.ErrUnavailable, rec.ID)
		}
		return nil, fmt.Errorf("claiming the task %s: %w", rec.ID, err)
	}
	return l, nil
}

// hostOf returns the host of a record's callback, empty if it has none.
func hostOf(rec *task.Record) string {
	if rec.Callback == nil {
		return ""
	}
	return rec.CallbackHost
}

func isTrusted(rec *task.Record) bool { return rec.Callback != nil && rec.Callback.Trusted }

// Settle implements engine.Lease.
func (l *lease) Settle(ctx context.Context, rec *task.Record, result io.Reader) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return engine.ErrLost
	}
	m := l.engine.settled(l.m, cloneRecord(rec))
	if rec.Result != nil {
		head := &limited{limit: fullResult}
		var r io.Reader
		if result != nil {
			r = io.TeeReader(result, head)
		}
		err := l.engine.readBody(r, m, func(r io.Reader) (string, int64, error) {
			return l.engine.putBody(ctx, m.meta.ID, r)
		})
		if errors.Is(err, engine.ErrFull) {
			m.meta.Size, err = 0, nil // there is room for some of it, perhaps
			m.body = head.Bytes()[:min(head.Len(), inlineLimit)]
			m.meta.Size = int64(len(m.body))
		}
		if err != nil {
			return err
		}
		kept(m)
	}
	err := l.settle(ctx, m)
	if err == nil && rec.Result != nil {
		rec.Result.Kept = m.meta.Size
	}
	return err
}

// settle stores the verdict; without the result, if that has no room.
func (l *lease) settle(ctx context.Context, m *message) error {
	name := "settle." + string(m.rec.Status)
	err := l.step(ctx, m, name)
	if errors.Is(err, engine.ErrFull) && m.meta.Size > 0 {
		l.engine.dropBody(m.dropBody())
		kept(m)
		err = l.step(ctx, m, name)
	}
	if err != nil {
		if !errors.Is(err, engine.ErrUnavailable) { // else it may have been stored
			l.engine.dropBody(m.meta.Body)
		}
		return fmt.Errorf("settling the task %s: %w", m.meta.ID, err)
	}
	l.engine.dropBody(l.m.meta.Body)
	return nil
}

// kept writes into the record how much of the result is kept.
func kept(m *message) {
	if m.rec.Result != nil {
		result := *m.rec.Result
		result.Kept = m.meta.Size
		m.rec.Result = &result
	}
}

// fullResult is what is remembered of a result in case that the store is full.
const fullResult = 32 << 10

// limited keeps the beginning of what is written to it.
type limited struct {
	bytes.Buffer
	limit int
}

func (l *limited) Write(b []byte) (int, error) {
	l.Buffer.Write(b[:min(len(b), l.limit-l.Len())])
	return len(b), nil
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
	n.dropBody()
	n.meta.Host, n.meta.Trusted = hostOf(rec), isTrusted(rec)
	n.meta.Finished, n.meta.Ready, n.meta.Order = fromTime(rec.FinishedAt), now.UnixNano(), 0
	n.meta.Holder, n.meta.MaxStarts = "", 0
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
	m.meta.Holder, m.meta.MaxStarts = "", 0
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
		m.meta.Holder, m.meta.MaxStarts = "", 0
	}
	if err := l.step(ctx, m, "release"); err != nil {
		return fmt.Errorf("releasing the task %s: %w", m.meta.ID, err)
	}
	return nil
}
