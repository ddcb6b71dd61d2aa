package nats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// enqueueTries limits how often an enqueue is retried when others with the same key or
// schedule come first.
const enqueueTries = 10

// Enqueue implements engine.Acceptor.
func (e *Engine) Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	if err := e.Ready(); err != nil {
		return "", false, err
	}
	return e.enqueue(ctx, rec, body, opts, nil)
}

// Enqueue implements engine.Lease.
func (l lease) Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	if l.isOver() {
		return "", false, engine.ErrLost
	}
	return l.engine.enqueue(ctx, rec, body, opts, l.held)
}

// enqueue stores a task as queued. If h is not nil, the task replaces the running one.
func (e *Engine) enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions, h *held) (string, bool, error) {
	m := e.queued(cloneRecord(rec))
	if err := e.readBody(ctx, m, body, false); err != nil {
		return "", false, err
	}
	if rec.Request != nil {
		rec.Request.Size = m.meta.Size
	}
	var key *engine.StoredKey
	if opts.Key != nil {
		key = &engine.StoredKey{Hash: opts.Key.Hash, TaskID: m.meta.ID, Expires: time.Now().Add(engine.KeyLifetime)}
		if opts.Key.Digest != nil {
			key.Digest = opts.Key.Digest()
		}
	}
	var known string
	bodyName, err := m.meta.Body, errKnown
	for tries := 0; errors.Is(err, errKnown) && tries < enqueueTries; tries++ {
		known, err = e.tryEnqueue(ctx, m, key, opts.MaxQueued, h)
	}
	if errors.Is(err, engine.ErrLost) && h != nil && e.wasQueued(ctx, m) {
		err = nil
	}
	isNew := err == nil && known == ""
	if known != "" {
		m.clearBody()
	}
	e.discardUnused(ctx, bodyName, m, err)
	if err == nil && known != "" && h != nil {
		err = h.end(ctx, removal(m.meta.ID), "release")
	}
	switch {
	case errors.Is(err, errKnown):
		err = e.unavailable(err)
	case isNew:
		known = m.meta.ID
	}
	return known, isNew, err
}

// wasQueued says whether an interrupted call has turned a waiting client's task into a
// queue's, which a worker has taken since. Nobody but its lease does that.
func (e *Engine) wasQueued(ctx context.Context, m *message) bool {
	now, err := e.getTask(ctx, m.meta.ID)
	return err == nil && now.meta.Queue == m.meta.Queue
}

func (e *Engine) queued(rec *task.Record) *message {
	ready := time.Now()
	if rec.NextAttemptAt.After(ready) {
		ready = rec.NextAttemptAt
	}
	return &message{rec: rec, meta: meta{
		ID: rec.ID, State: task.Queued, Queue: rec.Queue, Ready: ready.UnixNano(),
	}}
}

// errKnown means that another task with the key or schedule was stored first.
var errKnown = errors.New("another task was stored first")

// tryEnqueue stores a task, its key and the latest run of its schedule in one atomic
// step. It returns the ID of an earlier task if there is one.
func (e *Engine) tryEnqueue(ctx context.Context, m *message, key *engine.StoredKey, maxQueued int, h *held) (known string, err error) {
	var with []*nats.Msg
	isOther := func(known string) bool { return known != "" && (h == nil || known != m.meta.ID) }
	if key != nil {
		if known, err := e.knownKey(ctx, key); isOther(known) || err != nil {
			return known, err
		}
		with = append(with, keyMessage(key))
	}
	if m.rec.Schedule != "" {
		msg, waiting, err := e.runMessage(ctx, m.rec)
		if isOther(waiting) || err != nil {
			return waiting, err
		}
		if msg != nil {
			with = append(with, msg)
		}
	}
	if maxQueued > 0 && e.index.depth(m.meta.Queue) >= int64(maxQueued) {
		return "", engine.ErrQueueFull
	}
	if h != nil {
		if err = h.end(ctx, m, "enqueue", with...); errors.Is(err, engine.ErrLost) && !h.isOver() {
			err = errKnown
		}
		return "", err
	}
	err = e.put(ctx, m, 0, with...)
	if errors.Is(err, engine.ErrLost) {
		if err = errKnown; len(with) == 0 {
			err = fmt.Errorf("%w: a task with the ID %s exists", engine.ErrUnavailable, m.meta.ID)
		}
	}
	return "", err
}

func (x *index) depth(queue string) int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if b := x.queues[queue]; b != nil {
		return b.pending
	}
	return 0
}

// knownKey returns the ID of the task that has a key, or "". It returns ErrKeyReused if
// that task has another digest.
func (e *Engine) knownKey(ctx context.Context, key *engine.StoredKey) (string, error) {
	var known engine.StoredKey
	_, err := e.lookUp(ctx, keySubject+token(key.Hash), &known)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return "", nil
	case err == nil && known.Digest != key.Digest:
		err = engine.ErrKeyReused
	}
	return known.TaskID, err
}

// keyMessage returns the message that stores a new key. The server removes it when the
// key expires.
func keyMessage(key *engine.StoredKey) *nats.Msg {
	ttl := max(time.Until(key.Expires), time.Second).Round(time.Second)
	return expect(newMessage(keySubject+token(key.Hash), key, ttl), 0)
}

// runMessage makes a task the latest run of its schedule. If an earlier run has not
// started yet, it returns that run's ID instead.
func (e *Engine) runMessage(ctx context.Context, rec *task.Record) (*nats.Msg, string, error) {
	subject, latest := runSubject+token(rec.Schedule), ""
	seq, err := e.lookUp(ctx, subject, &latest)
	if err == nil {
		var run *message
		run, err = e.getTask(ctx, latest)
		if err == nil && run.meta.State == task.Queued && run.rec.Starts == 0 {
			return nil, latest, nil
		}
	}
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return nil, "", err
	}
	return expect(newMessage(subject, rec.ID, 0), seq), "", nil
}
