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
	fence
	s       *store
	id      string
	waiting bool // of a waiting client's task, not of a queue's
	seq     int64
	version int64
	place   place

	// The fields below are guarded by store.mu.
	lost   bool
	onLost func()
	queued *entry // the task that Enqueue has stored
}

// check returns ErrLost if the lease is over.
func (l *lease) check(t *tx) error {
	_, ok, err := t.number("SELECT 1 FROM task WHERE seq = ? AND version = ? AND state = 1", l.seq, l.version)
	if err == nil && !ok {
		err = engine.ErrLost
	}
	return err
}

// endLease removes the lease of a task after its holder has ended it. store.mu is held.
func (s *store) endLease(seq int64) { delete(s.leases, seq) }

// loseLease ends the lease of a canceled task. store.mu is held.
func (s *store) loseLease(seq int64) {
	l := s.leases[seq]
	if l == nil {
		return
	}
	delete(s.leases, seq)
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

// cutResult is how much of a result is kept while the store is almost full.
const cutResult = 64 << 10

// Settle implements [engine.Lease].
func (l *lease) Settle(ctx context.Context, rec *task.Record, result io.Reader) error {
	var b *body
	if rec.Result != nil {
		var err error
		if b, err = l.s.takeResult(result); err != nil {
			return err
		}
	}
	for {
		err := l.settle(ctx, rec, b)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, engine.ErrFull) && b != nil && b.size > 0:
			// The verdict is stored without the result: it matters more.
			l.s.bodies.remove(files(b))
			n := int64(0)
			if b.size > cutResult && b.file == "" {
				n = cutResult
			}
			b = &body{bytes: b.bytes[:n], size: n}
			continue
		case errors.Is(err, engine.ErrLost):
			l.s.bodies.remove(files(b))
		case errors.Is(err, engine.ErrFull):
			return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
		}
		return err
	}
}

// takeResult reads a result. It cuts a result for which there is no room.
func (s *store) takeResult(r io.Reader) (*body, error) {
	limit := int64(-1)
	if s.room.check(0) != nil {
		limit = cutResult
	}
	b, err := s.bodies.take(r, limit)
	var source readError
	switch {
	case errors.As(err, &source):
		return nil, source.error
	case err != nil:
		// The disk accepts no file, but the database has a reserve for verdicts.
		s.room.suspect()
		n := min(b.size, cutResult)
		return &body{bytes: b.bytes[:n], size: n}, nil
	}
	return b, nil
}

func (l *lease) settle(ctx context.Context, rec *task.Record, b *body) error {
	if b != nil {
		rec.Result.Kept = b.size
		rec.Result.Size = max(rec.Result.Size, b.size)
	}
	stored := copyOf(rec)
	doc, err := encode(stored)
	if err != nil {
		return err
	}
	v := &verdict{seq: l.seq, version: l.version, from: l.place, rec: stored, doc: doc, result: b, dropRequest: !l.waiting, hold: true}
	applied := false
	err = l.step(ctx, l.s, "settle", func(t *tx) error {
		if err := t.settle(v); err != nil {
			return err
		}
		t.after(func() {
			applied = true
			l.s.endLease(l.seq)
		})
		return nil
	})
	if err == nil && !applied {
		l.s.bodies.remove(files(b)) // an earlier call has stored another copy
	}
	return err
}

// verdict has the values that settle a queued or running task.
type verdict struct {
	seq, version int64
	from         place
	rec          *task.Record
	doc          []byte
	result       *body
	dropRequest  bool
	hold         bool // the delivery may stay in memory
}

const (
	// settleHeld settles a task that stays in memory. It changes no indexed column.
	settleHeld = `UPDATE task SET state = ?, version = version + 1, status = ?, starts = ?, max_starts = NULL, at = ?, since = ?,
		request = NULL, result = ?, doc = ? WHERE seq = ? AND version = ? AND state = ?`
	settleStored = `UPDATE task SET state = ?, version = version + 1, status = ?, starts = ?, max_starts = NULL, at = ?, since = ?,
		request = NULL, result = ?, doc = ?, holder = NULL WHERE seq = ? AND version = ? AND state = ?`
)

// settle stores a verdict with its result and its delivery. If there is room, a first
// delivery stays in memory.
func (t *tx) settle(v *verdict) (err error) {
	to := v.from
	to.state, to.held, to.size = done, false, int64(len(v.doc))+sizeOf(v.result)
	statement, at := settleStored, int64(0)
	if v.rec.Callback != nil {
		to.state, at = delivering, t.now
		if t.s.mu.Lock(); v.hold && t.s.freshN+t.fresh < maxFresh {
			statement, to.held, at = settleHeld, true, 0
		}
		t.s.mu.Unlock()
	}
	err = t.exec(statement, to.state, null(statusOf(v.rec.Status)), v.rec.Starts, null(at), t.now, kept(v.result), v.doc,
		v.seq, v.version, v.from.state)
	if err == nil {
		err = t.fenced()
	}
	if err != nil {
		return err
	}
	if to.host, err = t.hostID(v.rec); err != nil {
		return err
	}
	if to.host != v.from.host {
		if err := t.exec("UPDATE task SET host = ? WHERE seq = ?", null(to.host), v.seq); err != nil {
			return err
		}
	}
	if v.dropRequest {
		if err := t.dropBody(v.seq, engine.RequestBody); err != nil {
			return err
		}
	}
	if err := t.putBody(v.seq, engine.ResultBody, v.result); err != nil {
		return err
	}
	t.move(v.rec.ID, v.from, to)
	switch {
	case to.held:
		t.fresh++
		t.after(func() { t.s.addFresh(t.s.hosts[to.host], v.owed(to, t.now)) })
	case to.state == delivering:
		t.after(func() { t.s.dueAt(to.host, t.now) })
	}
	return nil
}

// owed returns the delivery that follows from a verdict.
func (v *verdict) owed(p place, at int64) *owed {
	o := &owed{seq: v.seq, version: v.version + 1, place: p, rec: v.rec, at: at, kept: -1}
	o.rec.State, o.rec.Version = task.Delivering, uint64(o.version)
	if v.result != nil {
		o.kept = v.result.size
		if v.result.file == "" && v.result.size <= maxSmall {
			o.result = v.result.bytes
		}
	}
	return o
}

// Requeue implements [engine.Lease].
func (l *lease) Requeue(ctx context.Context, rec *task.Record, at time.Time) error {
	stored := copyOf(rec)
	stored.StartedAt, stored.NextAttemptAt = time.Time{}, at
	doc, err := encode(stored)
	if err != nil {
		return err
	}
	return l.step(ctx, l.s, "requeue", func(t *tx) error {
		to := l.place
		old, _, err := t.number("SELECT length(doc) FROM task WHERE seq = ?", l.seq)
		if err != nil {
			return err
		}
		to.state, to.held, to.size = queued, false, l.place.size+int64(len(doc))-old
		err = t.exec(`UPDATE task SET state = 0, version = version + 1, starts = ?, max_starts = NULL, holder = NULL,
			at = coalesce(?, at), since = ?, doc = ? WHERE seq = ? AND version = ? AND state = 1`,
			rec.Starts, null(nanos(at)), t.now, doc, l.seq, l.version)
		if err == nil {
			err = t.fenced()
		}
		if err == nil {
			l.back(t, to)
		}
		return err
	})
}

// back counts a job that is queued again.
func (l *lease) back(t *tx, to place) {
	t.move(l.id, l.place, to)
	t.after(func() {
		l.s.endLease(l.seq)
		if q := l.s.queues[to.queue]; q != nil {
			q.ready(1)
		}
	})
}

// Enqueue implements [engine.Lease].
func (l *lease) Enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	return l.s.enqueue(ctx, l, rec, body, opts)
}

// toQueue turns a waiting client's task into a queue's task.
func (t *tx) toQueue(l *lease, e *entry, at int64) error {
	q, err := t.queue(e.rec.Queue)
	if err != nil {
		return err
	}
	to := place{state: queued, queue: q.id, size: int64(len(e.doc)) + e.body.size}
	if to.host, err = t.hostID(e.rec); err != nil {
		return err
	}
	if to.domain, err = t.domain(e.rec.CallbackDomain); err != nil {
		return err
	}
	err = t.exec(`UPDATE task SET state = 0, version = version + 1, queue = ?, host = ?, domain = ?, starts = ?,
		holder = NULL, at = ?, since = ?, request = ?, doc = ? WHERE seq = ? AND version = ? AND state = 1`,
		to.queue, null(to.host), null(to.domain), e.rec.Starts, at, t.now, e.body.size, e.doc, l.seq, l.version)
	if err == nil {
		err = t.fenced()
	}
	if err == nil {
		err = t.putBody(l.seq, engine.RequestBody, e.body)
	}
	if err == nil {
		t.move(l.id, l.place, to)
		t.after(func() { l.s.endLease(l.seq) })
	}
	return err
}

// removeClaimed removes the task of a waiting client.
func (t *tx) removeClaimed(l *lease) error {
	if err := t.remove(l.seq, l.id, l.place, false); err != nil {
		return err
	}
	t.after(func() { l.s.endLease(l.seq) })
	return nil
}

// remove removes a task, with its bodies if bodies is set.
func (t *tx) remove(seq int64, id string, from place, bodies bool) error {
	if err := t.exec("DELETE FROM task WHERE seq = ?", seq); err != nil {
		return err
	}
	t.move(id, from, nowhere)
	if !bodies {
		return nil
	}
	return t.dropBodies(seq)
}

// Release implements [engine.Lease].
func (l *lease) Release(ctx context.Context) error {
	return l.step(ctx, l.s, "release", func(t *tx) error {
		if l.waiting {
			if err := l.check(t); err != nil {
				return err
			}
			return t.removeClaimed(l)
		}
		err := t.exec(`UPDATE task SET state = 0, version = version + 1, starts = max(0, starts - 1), max_starts = NULL,
			holder = NULL, since = ? WHERE seq = ? AND version = ? AND state = 1`, t.now, l.seq, l.version)
		if err == nil {
			err = t.fenced()
		}
		if err == nil {
			to := l.place
			to.state, to.held = queued, false
			l.back(t, to)
		}
		return err
	})
}

// abandon releases a lease that was never returned to its caller.
func (l *lease) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := l.Release(ctx)
		if err == nil || errors.Is(err, engine.ErrLost) || ctx.Err() != nil || l.s.isClosing() {
			return // at the next start, a task that is still claimed is settled
		}
		timer := time.NewTimer(time.Second)
		select {
		case <-timer.C:
		case <-l.s.stop:
		}
		timer.Stop()
	}
}

func (s *store) isClosing() bool {
	s.batchMu.Lock()
	defer s.batchMu.Unlock()
	return s.closing
}
