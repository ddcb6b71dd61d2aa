package sqlite

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	// trimBatch is how many tasks are removed in one commit. Other operations wait for
	// it: removing a task takes 50 µs.
	trimBatch = 20
	// maxTrimBatch is how many are removed at once if the removal does not keep up.
	maxTrimBatch = 200
	// maxTrimInterval is the longest interval between two searches for expired tasks. A
	// search that takes longer does not keep up.
	maxTrimInterval = 10 * time.Second

	defaultDeliveryWindow = 30 * 24 * time.Hour
)

// limits returns the settings, with large values instead of zero for no limit.
func (s *store) limits() engine.Settings {
	s.mu.Lock()
	l := s.settings
	s.mu.Unlock()
	const forever = 200 * 365 * 24 * time.Hour
	l.Retention = cmp.Or(l.Retention, forever)
	l.RetentionCount = cmp.Or(l.RetentionCount, math.MaxInt64)
	l.Dead = cmp.Or(l.Dead, forever)
	l.DeadCount = cmp.Or(l.DeadCount, math.MaxInt64)
	l.DeliveryWindow = cmp.Or(l.DeliveryWindow, defaultDeliveryWindow)
	return l
}

// maintain removes expired tasks, between the commits of others.
func (s *store) maintain() {
	for size := trimBatch; ; {
		s.room.seen.Store(s.room.used())
		l := s.limits()
		isBehind, err := s.trim(s.life, l, size)
		if err != nil && !s.isClosing() && !errors.Is(err, engine.ErrFull) {
			s.log.Warn("removing expired tasks failed", zap.Error(err))
		}
		if s.room.crowded() {
			if err := s.evict(s.life, func() bool { return !s.room.crowded() }); err != nil && !s.isClosing() {
				s.log.Warn("evicting results failed", zap.Error(err))
			}
		}
		if isBehind {
			size = maxTrimBatch
			continue
		}
		size = trimBatch
		interval := min(l.Retention, l.Dead, l.DeliveryWindow) / 10
		if err := s.wait(s.life, s.room.wake, min(max(interval, 100*time.Millisecond), maxTrimInterval)); err != nil {
			return
		}
	}
}

// trim removes expired tasks and keys, and hosts that have not answered for a day, up to
// size of each at a time. It reports whether it has stopped after maxTrimInterval.
func (s *store) trim(ctx context.Context, l engine.Settings, size int) (isBehind bool, err error) {
	now := time.Now()
	batches := []func(*tx) (int, error){
		func(t *tx) (int, error) { return t.trimEnded(done, now.Add(-l.Retention), l.RetentionCount, size) },
		func(t *tx) (int, error) { return t.trimEnded(dead, now.Add(-l.Dead), l.DeadCount, size) },
		func(t *tx) (int, error) { return t.giveUp(now.Add(-l.DeliveryWindow), l.GaveUp, size) },
		func(t *tx) (int, error) {
			t.exec("DELETE FROM key WHERE hash IN (SELECT hash FROM key WHERE expires <= ? LIMIT ?)", now.UnixNano(), size)
			return int(t.Changes()), nil
		},
		func(t *tx) (int, error) {
			t.exec(`DELETE FROM host WHERE name IN (SELECT name FROM host INDEXED BY host_idle WHERE waiting = 0 AND paused = 0
				AND trusted = 0 AND failures = 0 AND answered < ? LIMIT ?)`, now.Add(-24*time.Hour).UnixNano(), size)
			return int(t.Changes()), nil
		},
	}
	for len(batches) > 0 && err == nil {
		if time.Since(now) > maxTrimInterval {
			return true, nil
		}
		batches = slices.DeleteFunc(batches, func(batch func(*tx) (int, error)) bool {
			n := 0
			if err == nil {
				n, err = s.remove(ctx, batch)
			}
			return n < size
		})
	}
	return false, err
}

// remove runs one batch of removals. The size of the store is measured again afterwards.
func (s *store) remove(ctx context.Context, batch func(*tx) (int, error)) (n int, err error) {
	err = s.update(ctx, func(t *tx) (err error) {
		n, err = batch(t)
		t.after(func() { s.measured = time.Time{} })
		return err
	})
	return n, err
}

// bySince finds the oldest tasks of a state, up to a time.
const bySince = " INDEXED BY task_since WHERE state = ? AND state >= 2 AND holder IS NULL AND since <= ? ORDER BY since LIMIT ?"

// trimEnded removes tasks of a state that ended before a time, and the oldest tasks if
// there are more than most.
func (t *tx) trimEnded(state int, before time.Time, most int64, size int) (int, error) {
	tasks, _ := t.number("SELECT tasks FROM tally WHERE state = ?", string(stateNames[state]))
	until, limit, over := before.UnixNano(), int64(size), tasks-most
	if over > 0 {
		until, limit = never, min(over, limit)
	}
	rows := all(t.conn, bySince, state, until, limit)
	for _, r := range rows {
		if err := t.remove(r); err != nil {
			return 0, err
		}
	}
	if over > 0 && len(rows) > 0 {
		return size, nil // others may be too old
	}
	return len(rows), nil
}

// giveUp turns callbacks whose delivery window has ended into dead letters. It returns size
// if there may be more.
func (t *tx) giveUp(before time.Time, gaveUp func(*task.Record), size int) (n int, err error) {
	rows := all(t.conn, bySince, delivering, before.UnixNano(), size)
	isFull := len(rows) == size
	held := all(t.conn, " INDEXED BY task_holder WHERE holder = ? AND state = 2 AND since <= ?", t.s.holder, before.UnixNano())
	for _, r := range append(rows, held...) {
		if t.s.flight(r.seq) != nil {
			continue // its attempt ends by itself
		}
		if err := t.giveUpOne(r); err != nil {
			return 0, err
		}
		n++
		if gaveUp == nil {
			continue
		}
		given := *r
		given.place.state, given.version = dead, r.version+1
		if rec, err := given.record(); err == nil { // a damaged record is not reported
			t.after(func() { gaveUp(rec) })
		}
	}
	if isFull && n > 0 {
		return size, nil // there may be more
	}
	return min(n, size-1), nil
}

// giveUpOne turns a callback into a dead letter.
func (t *tx) giveUpOne(r *row) error {
	to := r.place
	to.state, to.held = dead, false
	t.after(func() {
		t.s.endFlight(r.seq)
		t.s.dropDue(r.place.host, func(o *dueDelivery) bool { return o.seq == r.seq })
	})
	return t.step(r, to, "UPDATE task SET state = 4, version = version + 1, holder = NULL, at = NULL, since = ? WHERE seq = ?", t.now, r.seq)
}

// evict makes room until there is enough. It first removes the results of done tasks, and
// then the oldest dead letters.
func (s *store) evict(ctx context.Context, enough func() bool) error {
	for _, state := range []int{done, dead} {
		for n := evictBatch; n > 0; {
			var err error
			if n, err = s.evictFrom(ctx, state, enough); err != nil {
				return err
			}
		}
	}
	return nil
}

// evictFrom evicts one batch of tasks of a state, unless there is enough room. The lock
// is held for one batch only: a verdict must not wait until maintenance has finished.
func (s *store) evictFrom(ctx context.Context, state int, enough func() bool) (int, error) {
	s.room.evicting.Lock()
	defer s.room.evicting.Unlock()
	if enough() {
		return 0, nil
	}
	least := 0
	if !s.room.pagesHelp() {
		least = maxInline + 1
	}
	n, err := s.remove(ctx, func(t *tx) (int, error) { return t.evict(state, least) })
	if err == nil && s.cfg.Sync > 0 {
		err = s.syncLog() // until then, the files of evicted bodies exist
	}
	s.measureDisk()
	return n, err
}

// evicted is the position, by since, up to which the tasks of a state whose results
// have at least a number of bytes have been evicted.
type evicted struct {
	least int
	since int64
}

// evictBatch is how many tasks are evicted at once. A larger batch would evict more
// than needed.
const evictBatch = 20

// evict removes the results of done tasks, or dead letters, oldest first, whose results
// have at least so many bytes. It continues where the last call stopped: a million
// tasks may have no result.
func (t *tx) evict(state, least int) (int, error) {
	from := &t.s.evicted[state]
	if from.least != least {
		*from = evicted{least: least}
	}
	if state == done {
		least = max(1, least)
	}
	rows := all(t.conn, ` INDEXED BY task_since WHERE state = ? AND state >= 2 AND holder IS NULL AND since >= ?
		AND coalesce(result, 0) >= ? ORDER BY since LIMIT ?`, state, from.since, least, evictBatch)
	if len(rows) > 0 {
		from.since = rows[len(rows)-1].since
	}
	for _, r := range rows {
		if state == dead {
			if err := t.remove(r); err != nil {
				return 0, err
			}
			continue
		}
		to := r.place
		to.size -= r.result
		t.move(r, to)
		t.dropResult(r)
	}
	return len(rows), nil
}
