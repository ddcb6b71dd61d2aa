package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Enqueue implements engine.Acceptor.
func (e *Engine) Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	if err := e.Ready(); err != nil {
		return "", false, err
	}
	return e.enqueue(ctx, rec, body, opts, nil)
}

func (l lease) Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	if l.isOver() {
		return "", false, engine.ErrLost
	}
	return l.engine.enqueue(ctx, rec, body, opts, l.inFlight)
}

// enqueue stores a task as queued. If f is not nil, the task replaces the running one.
func (e *Engine) enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions, f *inFlight) (string, bool, error) {
	m := queued(cloneRecord(rec))
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
	bodyName := m.meta.Body
	known, err := e.insert(ctx, m, key, opts.MaxQueued, f)
	if f != nil && errors.Is(err, engine.ErrLost) && e.wasQueued(ctx, m) {
		err = nil
	}
	if known != "" {
		m.clearBody()
	}
	e.discardUnused(ctx, bodyName, m, err)
	if err == nil && (known == "" || known == m.meta.ID) { // an interrupted call may have stored it
		return m.meta.ID, true, nil
	}
	if err == nil && f != nil {
		err = f.end(ctx, removal(m.meta.ID), "release")
	}
	return known, false, err
}

// wasQueued reports whether an interrupted call has already turned a waiting client's
// task into a queue's, which a worker has taken since. No other gateway can do that,
// because it has no lease of the task.
func (e *Engine) wasQueued(ctx context.Context, m *message) bool {
	now, err := e.getTask(ctx, m.meta.ID)
	return err == nil && now.meta.Queue == m.meta.Queue
}

// queued returns the step that stores a task as queued, without a body.
func queued(rec *task.Record) *message {
	ready := time.Now()
	if rec.NextAttemptAt.After(ready) {
		ready = rec.NextAttemptAt
	}
	return &message{rec: rec, meta: meta{
		ID: rec.ID, State: task.Queued, Queue: rec.Queue, Ready: ready.UnixNano(),
	}}
}

// maxBatches is how many tasks with a key or a schedule a gateway stores at once, each
// in an atomic batch. The server allows 50 batches a stream, and a batch costs it a file.
const maxBatches = 12

// insertTries limits how often insert is repeated when others with the same key or
// schedule come first.
const insertTries = 10

// insert stores a task as queued, its key and the latest run of its schedule in one
// atomic step. It returns the ID of the earlier task if there is one.
func (e *Engine) insert(ctx context.Context, m *message, key *engine.StoredKey, maxQueued int, f *inFlight) (known string, err error) {
	if key != nil || m.rec.Schedule != "" {
		// A known key is looked up here too, so that of many tasks with one key only the
		// first few are sent in vain.
		select {
		case e.batches <- struct{}{}:
			defer func() { <-e.batches }()
		case <-ctx.Done():
			return "", e.unavailable(ctx.Err())
		}
	}
	for try := range insertTries {
		if try > 1 { // what was read may be outdated
			e.sleep(ctx, nil, electionPause)
		}
		with, known, err := e.conditions(ctx, m, key)
		switch {
		case known != "" || err != nil:
			return known, err
		case maxQueued > 0 && e.index.depth(m.meta.Queue) >= int64(maxQueued):
			return "", engine.ErrQueueFull
		case f != nil:
			err = f.end(ctx, m, "enqueue", with...)
		default:
			err = e.put(ctx, m, 0, with...)
		}
		if errors.Is(err, engine.ErrLost) && f == nil {
			err = fmt.Errorf("%w: a task with the ID %s exists", engine.ErrUnavailable, m.meta.ID)
		}
		if !errors.Is(err, errConflict) {
			return "", err
		}
	}
	return "", errConflict
}

// conditions returns the messages with which a task is stored only if it is the first
// one with its key, and no other run of its schedule came first. It returns the ID of
// the earlier task if there is one.
func (e *Engine) conditions(ctx context.Context, m *message, key *engine.StoredKey) (with []*nats.Msg, known string, err error) {
	if key != nil {
		if known, err = e.knownKey(ctx, key); known != "" || err != nil {
			return nil, known, err
		}
		with = append(with, keyMessage(key))
	}
	if m.rec.Schedule != "" {
		var run *nats.Msg
		if run, known, err = e.runMessage(ctx, m.rec); known != "" || err != nil {
			return nil, known, err
		}
		with = append(with, run)
	}
	return with, "", nil
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

// NextRun implements engine.Schedules.
func (e *Engine) NextRun(ctx context.Context, schedule string, first time.Time) (engine.Run, error) {
	s := scheduleMeta{schedule, engine.Run{Next: first.UTC()}}
	if err := e.lookUpOrStore(ctx, scheduleSubject+token(schedule), &s); err != nil {
		return engine.Run{}, fmt.Errorf("looking up the schedule %s: %w", schedule, err)
	}
	return s.Run, nil
}

// Advance implements engine.Schedules.
func (e *Engine) Advance(ctx context.Context, schedule string, due, next time.Time) error {
	var s scheduleMeta
	subject := scheduleSubject + token(schedule)
	seq, err := e.lookUp(ctx, subject, &s)
	if err == nil && !s.Next.Equal(due) || errors.Is(err, engine.ErrNotFound) {
		err = engine.ErrLost
	}
	if err == nil {
		s.Run = engine.Run{Last: due.UTC(), Next: next.UTC()}
		_, err = e.store(ctx, expect(newMessage(subject, s, 0), seq))
	}
	if err != nil {
		return fmt.Errorf("advancing the schedule %s: %w", schedule, err)
	}
	return nil
}

// Runs implements engine.Tasks.
func (e *Engine) Runs(ctx context.Context) (map[string]engine.Run, error) {
	all, _, err := scan[scheduleMeta](ctx, e, scheduleSubject, 0, math.MaxInt)
	if err != nil {
		return nil, fmt.Errorf("listing schedules: %w", err)
	}
	runs := make(map[string]engine.Run, len(all))
	for _, s := range all {
		runs[s.Schedule] = s.Run
	}
	return runs, nil
}

// scheduleMeta are the run times of a schedule.
type scheduleMeta struct {
	Schedule string
	engine.Run
}

// Import implements engine.Tasks.
func (e *Engine) Import(ctx context.Context, rec *task.Record, request, result io.Reader) error {
	last := uint64(0)
	switch now, err := e.lastStep(ctx, rec.ID); {
	case err == nil && now.meta.State != removed:
		return nil
	case err == nil:
		last = now.seq
	case !errors.Is(err, engine.ErrNotFound):
		return fmt.Errorf("importing the task %s: %w", rec.ID, err)
	}
	m := queued(cloneRecord(rec))
	m.meta.State, m.meta.Ready = rec.State, cmp.Or(fromTime(rec.NextAttemptAt), fromTime(rec.CreatedAt))
	body := result
	if rec.State == task.Queued || rec.State == task.Running {
		body = request
	}
	m.meta.Finished = max(fromTime(rec.FinishedAt), fromTime(rec.DeliveredAt))
	if err := e.readBody(ctx, m, body, false); err != nil {
		return err
	}
	step := m
	if rec.State == task.Running {
		m.meta.MaxStarts = rec.Starts + 1 // the limit itself is known only at the next start
		step = expired(m)
	}
	err := e.put(ctx, step, last)
	e.discardUnused(ctx, m.meta.Body, step, err)
	if err != nil && !errors.Is(err, engine.ErrLost) { // lost: another gateway imported it
		return fmt.Errorf("importing the task %s: %w", rec.ID, err)
	}
	return nil
}

// Keys implements engine.Tasks.
func (e *Engine) Keys(ctx context.Context, after engine.Cursor, limit int) ([]engine.StoredKey, engine.Cursor, error) {
	at, err := parsePlace(after, place{})
	if err != nil {
		return nil, "", err
	}
	keys, next, err := scan[engine.StoredKey](ctx, e, keySubject, uint64(at.n), limit) //nolint:gosec // a sequence, or no key is found
	if err != nil {
		return nil, "", fmt.Errorf("listing idempotency keys: %w", err)
	}
	if next == 0 {
		return keys, "", nil
	}
	return keys, place{n: int64(next)}.cursor(), nil //nolint:gosec // far below 2^63
}

// scan returns the metadata of up to limit messages of the task stream with a subject
// prefix and a sequence after seq. next is the last sequence, zero if there are no more.
func scan[T any](ctx context.Context, e *Engine, prefix string, seq uint64, limit int) (all []T, next uint64, err error) {
	for len(all) < limit {
		var msg *jetstream.RawStreamMsg
		var meta T
		err := e.retry(ctx, func(ctx context.Context) (err error) {
			msg, err = e.tasks.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(prefix+"*"))
			return err
		})
		if errors.Is(err, engine.ErrNotFound) {
			return all, 0, nil
		}
		if err == nil {
			seq, err = msg.Sequence, getMeta(msg.Header, &meta)
		}
		if err != nil {
			return nil, 0, err
		}
		all = append(all, meta)
	}
	return all, seq, nil
}

// ImportKey implements engine.Tasks.
func (e *Engine) ImportKey(ctx context.Context, k engine.StoredKey) error {
	if !time.Now().Before(k.Expires) {
		return nil
	}
	if _, err := e.store(ctx, keyMessage(&k)); err != nil && !errors.Is(err, engine.ErrLost) {
		return fmt.Errorf("importing an idempotency key: %w", err)
	}
	return nil
}
