package nats

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

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
	m := e.queued(cloneRecord(rec))
	m.meta.State, m.meta.Ready = rec.State, cmp.Or(fromTime(rec.NextAttemptAt), fromTime(rec.CreatedAt))
	body := result
	switch rec.State {
	case task.Queued, task.Running:
		body = request
	default:
		m.meta.Dropped = rec.Result != nil && result == nil && rec.Result.Kept > 0
	}
	if rec.State == task.Delivering || rec.Ended() {
		m.meta.Finished = max(fromTime(rec.FinishedAt), fromTime(rec.DeliveredAt))
	}
	if rec.State == task.Done || rec.State == task.Dead {
		m.meta.Ready = 0
	}
	if err := e.readBody(ctx, m, body, false); err != nil {
		return err
	}
	step := m
	if rec.State == task.Running {
		if m.meta.Queue != "" {
			m.meta.MaxStarts = rec.Starts + 1 // the limit itself is known only at the next start
		}
		step = e.expired(m)
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
	var at place
	if after != "" {
		var err error
		if at, err = parsePlace(after); err != nil {
			return nil, "", err
		}
	}
	var keys []engine.StoredKey
	seq, more, err := e.scan(ctx, uint64(at.n), keySubject, limit, func(msg *jetstream.RawStreamMsg) (bool, error) {
		var key engine.StoredKey
		err := getMeta(msg.Header, &key)
		lives := time.Now().Before(key.Expires)
		if lives {
			keys = append(keys, key)
		}
		return lives, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing idempotency keys: %w", err)
	}
	if !more {
		return keys, "", nil
	}
	return keys, place{n: int64(seq)}.cursor(), nil
}

// scan reads messages of the task stream with a subject prefix and a sequence after
// seq, until read has returned true limit times. It returns the last sequence, and
// whether there may be more.
func (e *Engine) scan(ctx context.Context, seq uint64, prefix string, limit int, read func(*jetstream.RawStreamMsg) (bool, error)) (uint64, bool, error) {
	for n := 0; n < limit; {
		var msg *jetstream.RawStreamMsg
		err := e.retry(ctx, func(ctx context.Context) (err error) {
			msg, err = e.tasks.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(prefix+"*"))
			return err
		})
		if errors.Is(err, engine.ErrNotFound) {
			return seq, false, nil
		}
		if err != nil {
			return seq, true, err
		}
		seq = msg.Sequence
		counts, err := read(msg)
		if err != nil {
			return seq, true, fmt.Errorf("decoding the message %d: %w", seq, err)
		}
		if counts {
			n++
		}
	}
	return seq, true, nil
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
