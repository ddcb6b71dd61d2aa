package sqlite

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
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
	doc, err := encode(rec)
	if err != nil {
		return err
	}
	var bodies [2]*body
	var files []string
	for i, r := range []io.Reader{request, result} {
		if r == nil {
			continue
		}
		if bodies[i], err = s.bodies.take(r); err != nil {
			s.bodies.drop(files...)
			return err
		}
		files = append(files, bodies[i].files()...)
	}
	err = s.update(ctx, func(t *tx) error { return t.insertImported(rec, doc, bodies[0], bodies[1]) }, files...)
	if errors.Is(err, errIDInUse) {
		return nil
	}
	return err
}

func (t *tx) insertImported(rec *task.Record, doc []byte, request, result *body) error {
	state := slices.Index(stateNames[:], rec.State)
	if state < 0 {
		state = queued
		if rec.Ended() {
			state = done
		}
	}
	since, at := t.now, int64(0)
	switch state {
	case queued, running:
		at = cmp.Or(nanos(rec.NextAttemptAt), nanos(rec.CreatedAt))
	case delivering:
		at, since = max(nanos(rec.NextAttemptAt), 1), cmp.Or(nanos(rec.FinishedAt), since)
	default:
		since = cmp.Or(max(nanos(rec.FinishedAt), nanos(rec.DeliveredAt)), since)
	}
	r, err := t.insert(rec, doc, state, at, since, request, result)
	if err != nil {
		return err
	}
	switch state {
	case running:
		// The holder is in the other store. No attempt is known to be the last one.
		r.maxStarts, r.doc = r.starts+1, doc
		return t.expire(r)
	case queued:
		t.after(func() { t.s.wakeWorker(rec.Queue) })
	case delivering:
		t.after(func() { t.s.dueAt(r.place.host, at) })
	}
	return nil
}

// Keys implements [engine.Tasks].
func (s *store) Keys(ctx context.Context, after engine.Cursor, limit int) ([]engine.StoredKey, engine.Cursor, error) {
	last, err := after.Position()
	if err != nil {
		return nil, "", err
	}
	var keys []engine.StoredKey
	err = s.read(ctx, func(c *conn) error {
		keys = nil
		c.query("SELECT hash, digest, task, expires FROM key WHERE hash > ? AND expires > ? ORDER BY hash LIMIT ?",
			[]any{last, time.Now().UnixNano(), limit}, func(stmt *sqlite3.Stmt) bool {
				keys = append(keys, engine.StoredKey{
					Hash: stmt.ColumnText(0), Digest: stmt.ColumnText(1), TaskID: stmt.ColumnText(2), Expires: timeOf(stmt.ColumnInt64(3)),
				})
				return true
			})
		return nil
	})
	if err != nil || len(keys) < limit || len(keys) == 0 {
		return keys, "", err
	}
	return keys, engine.NewCursor(keys[len(keys)-1].Hash), nil
}

// ImportKey implements [engine.Tasks].
func (s *store) ImportKey(ctx context.Context, k engine.StoredKey) error {
	return s.update(ctx, func(t *tx) error {
		t.exec("INSERT INTO key(hash, digest, task, expires) VALUES (?, ?, ?, ?) ON CONFLICT(hash) DO NOTHING",
			k.Hash, k.Digest, k.TaskID, nanos(k.Expires))
		return nil
	})
}
