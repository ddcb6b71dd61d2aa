package nats

import (
	"context"
	"encoding/json"
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
func (l *lease) Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return "", false, engine.ErrLost
	}
	return l.engine.enqueue(ctx, rec, body, opts, l)
}

// enqueue stores a task as queued. If l is not nil, the task replaces the running one.
func (e *Engine) enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions, l *lease) (string, bool, error) {
	m := e.queued(cloneRecord(rec))
	if err := e.readBody(ctx, m, body, false); err != nil {
		return "", false, err
	}
	if m.rec.Request != nil {
		request := *m.rec.Request
		request.Size = m.meta.Size
		m.rec.Request = &request
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
		known, err = e.tryEnqueue(ctx, m, key, opts.MaxQueued, l)
	}
	queued := err == nil && known == "" || errors.Is(err, engine.ErrLost) && l != nil && e.wasQueued(ctx, m)
	if (!queued || m.meta.Body != bodyName) && !errors.Is(err, engine.ErrUnavailable) { // else it may have been stored
		e.discard(ctx, bodyName)
	}
	if queued {
		return m.meta.ID, true, nil
	}
	if err == nil && l != nil {
		err = l.step(ctx, &message{meta: meta{ID: l.m.meta.ID, State: removed}}, "release")
	}
	if errors.Is(err, errKnown) {
		err = e.unavailable(err)
	}
	return known, false, err
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
func (e *Engine) tryEnqueue(ctx context.Context, m *message, key *engine.StoredKey, maxQueued int, l *lease) (known string, err error) {
	var with []*nats.Msg
	isOther := func(known string) bool { return known != "" && (l == nil || known != m.meta.ID) }
	if key != nil {
		if known, err := e.knownKey(ctx, key); isOther(known) || err != nil {
			return known, err
		}
		msg, err := keyMessage(*key)
		if err != nil {
			return "", err
		}
		with = append(with, msg)
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
	if l != nil {
		if err = l.step(ctx, m, "enqueue", with...); errors.Is(err, engine.ErrLost) && !l.over {
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
	msg, err := e.get(ctx, e.tasks, keySubject+token(key.Hash))
	if errors.Is(err, engine.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var known engine.StoredKey
	if err := json.Unmarshal(msg.Data, &known); err != nil {
		return "", fmt.Errorf("decoding an idempotency key: %w", err)
	}
	if known.Digest != key.Digest {
		return known.TaskID, engine.ErrKeyReused
	}
	return known.TaskID, nil
}

// keyMessage returns the message that stores a new key. The server removes it when the
// key expires.
func keyMessage(key engine.StoredKey) (*nats.Msg, error) {
	msg := nats.NewMsg(keySubject + token(key.Hash))
	var err error
	if msg.Data, err = json.Marshal(key); err != nil {
		return nil, fmt.Errorf("encoding an idempotency key: %w", err)
	}
	msg.Header.Set(ttlHeader, max(time.Until(key.Expires), time.Second).Round(time.Second).String())
	expect(msg, 0)
	return msg, nil
}

// runMessage makes a task the latest run of its schedule. If an earlier run has not
// started yet, it returns that run's ID instead.
func (e *Engine) runMessage(ctx context.Context, rec *task.Record) (*nats.Msg, string, error) {
	msg := nats.NewMsg(runSubject + token(rec.Schedule))
	msg.Data = []byte(rec.ID)
	latest, err := e.get(ctx, e.tasks, msg.Subject)
	if errors.Is(err, engine.ErrNotFound) {
		expect(msg, 0)
		return msg, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	expect(msg, latest.Sequence)
	run, err := e.getTask(ctx, string(latest.Data))
	switch {
	case err == nil && run.meta.State == task.Queued && run.rec.Starts == 0:
		return nil, run.meta.ID, nil
	case err != nil && !errors.Is(err, engine.ErrNotFound):
		return nil, "", err
	}
	return msg, "", nil
}
