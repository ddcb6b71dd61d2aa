package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// lease implements [engine.Lease]. Its fencing token is the version that the task had
// when it was claimed.
type lease struct {
	s   *store
	row *row // as it was claimed, without its document

	// The fields below are guarded by store.mu.
	lost   bool
	onLost func()
}

// end removes the lease after its holder has ended it. store.mu is held.
func (l *lease) end() { delete(l.s.leases, l.row.seq) }

// loseLease ends the lease of a canceled task. store.mu is held.
func (s *store) loseLease(seq int64) {
	l := s.leases[seq]
	if l == nil {
		return
	}
	l.end()
	l.lost = true
	if l.onLost != nil {
		go l.onLost()
	}
}

// OnLost implements [engine.Lease].
func (l *lease) OnLost(f func()) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.onLost = f
	if l.lost {
		go f()
	}
}

// step applies a step that ends the lease.
func (l *lease) step(ctx context.Context, f func(*tx) error, files ...string) error {
	return l.s.commitOp(ctx, op{apply: f, files: files, lease: l})
}

// cutResult is how much of a result is kept while the store is almost full.
const cutResult = 64 << 10

// Settle implements [engine.Lease].
func (l *lease) Settle(ctx context.Context, rec *task.Record, result io.Reader) error {
	var b *body
	if rec.Result != nil {
		var err error
		if b, err = l.s.takeResult(ctx, result); err != nil {
			return err
		}
	}
	for {
		err := l.settle(ctx, rec, b)
		switch {
		case !errors.Is(err, engine.ErrFull):
			return err
		case b.kept() <= 0:
			return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
		case b.size > cutResult && b.file == "":
			b = b.cut(cutResult)
		default:
			b = b.cut(0) // the verdict matters more
		}
	}
}

// takeResult reads a result. It cuts a result for which no room can be made.
func (s *store) takeResult(ctx context.Context, r io.Reader) (*body, error) {
	if r != nil && s.makeRoom(ctx, 0) != nil {
		r = io.LimitReader(r, cutResult)
	}
	b, err := s.bodies.take(r)
	if err == nil || b == nil {
		return b, err
	}
	// The disk accepts no file, but the database has a reserve for verdicts.
	s.room.free.Store(0) // until it is measured again
	return b.cut(cutResult), nil
}

// cut returns the first n bytes of a body, or the whole body if it is shorter. A file has
// no bytes in memory: n must be 0.
func (b *body) cut(n int64) *body {
	n = min(n, b.size)
	return &body{bytes: b.bytes[:n], size: n}
}

func (l *lease) settle(ctx context.Context, rec *task.Record, b *body) error {
	if b != nil {
		rec.Result.Kept = b.size
		rec.Result.Size = max(rec.Result.Size, b.size)
	}
	stored := copyOf(rec)
	doc, err := encode(stored)
	if err != nil {
		l.s.bodies.drop(b.files()...)
		return err
	}
	return l.step(ctx, func(t *tx) error { return t.settle(l.row, stored, doc, b, true) }, b.files()...)
}

// settle stores a verdict with its result and its delivery. If hold is set and there is
// room, the delivery stays in memory; then no column of the indexes of waiting deliveries
// changes.
func (t *tx) settle(r *row, rec *task.Record, doc []byte, result *body, hold bool) error {
	to := r.place
	to.state, to.held, to.host, to.size = done, false, hostOf(rec), size(doc, -1, result.kept())
	const update = `UPDATE task SET state = ?, version = version + 1, status = ?, starts = ?, max_starts = NULL, at = ?, since = ?,
		request = NULL, result = nullif(?, -1), doc = ?`
	const where = " WHERE seq = ? AND version = ? AND state = ?"
	query, at := update+", holder = NULL"+where, int64(0)
	if rec.Callback != nil {
		to.state, at = delivering, t.now
		if t.s.mu.Lock(); hold && t.s.inMemory+t.held < maxInMemory {
			to.held, query, at = true, update+where, 0
		}
		t.s.mu.Unlock()
	}
	err := t.step(r, to, query,
		to.state, opt(statusOf(rec.Status)), rec.Starts, opt(at), t.now, result.kept(), doc, r.seq, r.version, r.place.state)
	if err != nil {
		return err
	}
	if to.host != r.place.host {
		t.exec("UPDATE task SET host = ? WHERE seq = ?", opt(to.host), r.seq)
	}
	t.dropBody(r.seq, engine.RequestBody, r.request)
	t.putBody(r.seq, engine.ResultBody, result)
	t.trust(rec)
	switch {
	case to.held:
		t.held++
		settled := row{seq: r.seq, id: r.id, version: r.version + 1, place: to, at: t.now, request: -1, result: result.kept()}
		due := &dueDelivery{row: settled, rec: rec}
		rec.State, rec.Version = task.Delivering, uint64(settled.version)
		if result != nil && result.size <= maxSmall {
			due.result = result.bytes
		}
		t.after(func() {
			t.s.addDue(due)
			t.s.dueNow(t.s.host(to.host))
		})
	case to.state == delivering:
		t.after(func() { t.s.dueAt(to.host, t.now) })
	}
	return nil
}

// Requeue implements [engine.Lease].
func (l *lease) Requeue(ctx context.Context, rec *task.Record, at time.Time) error {
	stored := copyOf(rec)
	stored.StartedAt, stored.NextAttemptAt = time.Time{}, at
	doc, err := encode(stored)
	if err != nil {
		return err
	}
	return l.step(ctx, func(t *tx) error { return t.requeue(l.row, int64(rec.Starts), at, doc) })
}

// requeue queues a running job again, after so many starts. It keeps its ready time if at
// is zero, and its document if doc is nil.
func (t *tx) requeue(r *row, starts int64, at time.Time, doc []byte) error {
	to := r.place
	to.state, to.held = queued, false
	var changed any
	if doc != nil {
		changed, to.size = doc, size(doc, r.request, r.result)
	}
	err := t.step(r, to, `UPDATE task SET state = 0, version = version + 1, starts = ?, max_starts = NULL, holder = NULL,
		at = coalesce(?, at), since = ?, doc = coalesce(?, doc) WHERE seq = ? AND version = ? AND state = 1`,
		starts, opt(nanos(at)), t.now, changed, r.seq, r.version)
	if err == nil {
		t.after(func() { t.s.wakeWorker(to.queue) })
	}
	return err
}

// Enqueue implements [engine.Lease].
func (l *lease) Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	return l.s.enqueue(ctx, l, rec, body, opts)
}

// Release implements [engine.Lease].
func (l *lease) Release(ctx context.Context) error {
	return l.step(ctx, func(t *tx) error {
		if l.row.place.queue == "" {
			return t.remove(l.row)
		}
		return t.requeue(l.row, max(0, l.row.starts-1), time.Time{}, nil)
	})
}

// remove removes a task with its bodies.
func (t *tx) remove(r *row) error {
	if t.exec("DELETE FROM task WHERE seq = ? AND version = ?", r.seq, r.version); t.Changes() != 1 {
		return engine.ErrLost
	}
	t.count(r.place, -1)
	t.changed = append(t.changed, r.id)
	t.s.cache.drop(r.seq)
	t.dropBody(r.seq, engine.RequestBody, r.request)
	t.dropBody(r.seq, engine.ResultBody, r.result)
	return nil
}
