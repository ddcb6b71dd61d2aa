package sqlite

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Import implements [engine.Tasks].
func (s *store) Import(ctx context.Context, rec *task.Record, request, result io.Reader) error {
	if err := s.admit(ctx, 0); err != nil {
		return err
	}
	var bodies [2]*body
	for i, r := range []io.Reader{request, result} {
		if r == nil {
			continue
		}
		b, err := s.takeBody(r)
		if err != nil {
			return err
		}
		bodies[i] = b
	}
	doc, err := encode(rec)
	if err != nil {
		return err
	}
	err = s.update(ctx, func(t *tx) error { return t.insertImported(rec, doc, bodies[0], bodies[1]) })
	if errors.Is(err, errIDInUse) {
		s.bodies.remove(append(files(bodies[0]), files(bodies[1])...))
		return nil
	}
	return err
}

func (t *tx) insertImported(rec *task.Record, doc []byte, request, result *body) error {
	state, ok := stateOf(rec.State)
	if !ok {
		state = queued
		if rec.Ended() {
			state = done
		}
	}
	p := place{state: state}
	since, at := t.now, int64(0)
	switch state {
	case queued, running:
		at = nanos(rec.NextAttemptAt)
		if at == 0 {
			at = nanos(rec.CreatedAt)
		}
	case delivering:
		at = max(nanos(rec.NextAttemptAt), 1)
		if !rec.FinishedAt.IsZero() {
			since = nanos(rec.FinishedAt)
		}
	default:
		if !rec.FinishedAt.IsZero() {
			since = max(nanos(rec.FinishedAt), nanos(rec.DeliveredAt))
		}
	}
	seq, err := t.insert(rec, doc, &p, at, since, request, result)
	if err != nil {
		return err
	}
	switch state {
	case running:
		// The holder is in the other store. No attempt is known to be the last one.
		r, err := one(t.conn, " WHERE seq = ?", seq)
		if err != nil {
			return err
		}
		r.maxStarts = r.starts + 1
		return t.expire(r)
	case queued:
		t.after(func() {
			if q := t.s.queues[p.queue]; q != nil {
				q.ready(1)
			}
		})
	case delivering:
		t.after(func() { t.s.dueAt(p.host, at) })
	}
	return nil
}

// Keys implements [engine.Tasks].
func (s *store) Keys(ctx context.Context, after engine.Cursor, limit int) ([]engine.StoredKey, engine.Cursor, error) {
	var keys []engine.StoredKey
	err := s.read(ctx, func(c *conn) error {
		keys = nil
		return c.query("SELECT hash, digest, task, expires FROM key WHERE hash > ? AND expires > ? ORDER BY hash LIMIT ?",
			[]any{string(after), time.Now().UnixNano(), limit}, func(stmt *sqlite3.Stmt) bool {
				keys = append(keys, engine.StoredKey{
					Hash: stmt.ColumnText(0), Digest: stmt.ColumnText(1), TaskID: stmt.ColumnText(2), Expires: timeOf(stmt.ColumnInt64(3)),
				})
				return true
			})
	})
	if err != nil || len(keys) < limit || len(keys) == 0 {
		return keys, "", err
	}
	return keys, engine.Cursor(keys[len(keys)-1].Hash), nil
}

// ImportKey implements [engine.Tasks].
func (s *store) ImportKey(ctx context.Context, k engine.StoredKey) error {
	return s.update(ctx, func(t *tx) error {
		return t.exec("INSERT INTO key(hash, digest, task, expires) VALUES (?, ?, ?, ?) ON CONFLICT(hash) DO NOTHING",
			k.Hash, k.Digest, k.TaskID, nanos(k.Expires))
	})
}
