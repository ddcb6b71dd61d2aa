package sqlite

import (
	"cmp"
	"context"
	"errors"
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	// trimBatch is how many tasks are removed in one commit, which delays other
	// commits.
	trimBatch = 200
	// maxTrimInterval is the longest interval between two searches for expired tasks.
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
	for {
		l := s.limits()
		if err := s.trim(s.life, l); err != nil && !s.isClosing() && !errors.Is(err, engine.ErrFull) {
			s.log.Warn("removing expired tasks failed", zap.Error(err))
		}
		if s.room.crowded() {
			if err := s.evict(s.life); err != nil && !s.isClosing() {
				s.log.Warn("evicting results failed", zap.Error(err))
			}
		}
		interval := min(l.Retention, l.Dead, l.DeliveryWindow) / 10
		if _, err := s.wait(s.life, s.room.wake, min(max(interval, 100*time.Millisecond), maxTrimInterval)); err != nil {
			return
		}
	}
}

// trim removes expired tasks and keys, and hosts that have not answered for a day.
func (s *store) trim(ctx context.Context, l engine.Settings) error {
	now := time.Now()
	for _, batch := range []func(*tx) (int, error){
		func(t *tx) (int, error) { return t.trimEnded(done, now.Add(-l.Retention), l.RetentionCount) },
		func(t *tx) (int, error) { return t.trimEnded(dead, now.Add(-l.Dead), l.DeadCount) },
		func(t *tx) (int, error) { return t.giveUp(now.Add(-l.DeliveryWindow), l.GaveUp) },
		func(t *tx) (int, error) {
			return t.trimRows("DELETE FROM key WHERE hash IN (SELECT hash FROM key WHERE expires <= ? LIMIT ?)", now.UnixNano())
		},
		func(t *tx) (int, error) {
			return t.trimRows(`DELETE FROM host WHERE name IN (SELECT name FROM host INDEXED BY host_idle
				WHERE waiting = 0 AND paused = 0 AND trusted = 0 AND failures = 0 AND answered < ? LIMIT ?)`, now.Add(-24*time.Hour).UnixNano())
		},
	} {
		if err := s.inBatches(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// inBatches repeats a batch until it removes fewer than its maximum.
func (s *store) inBatches(ctx context.Context, batch func(*tx) (int, error)) error {
	for {
		n := 0
		err := s.update(ctx, func(t *tx) (err error) {
			n, err = batch(t)
			t.after(func() { s.measured = time.Time{} })
			return err
		})
		if err != nil || n < trimBatch {
			return err
		}
	}
}

// trimRows runs a statement that removes up to trimBatch rows.
func (t *tx) trimRows(query string, limit int64) (int, error) {
	err := t.exec(query, limit, trimBatch)
	return int(t.Changes()), err
}

// bySince finds the oldest tasks of a state, up to a time.
const bySince = " INDEXED BY task_since WHERE state = ? AND state >= 2 AND holder IS NULL AND since <= ? ORDER BY since LIMIT ?"

// trimEnded removes tasks of a state that ended before a time, and the oldest tasks if
// there are more than most.
func (t *tx) trimEnded(state int, before time.Time, most int64) (int, error) {
	tasks, _, err := t.number("SELECT tasks FROM tally WHERE state = ?", string(stateNames[state]))
	if err != nil {
		return 0, err
	}
	until, limit, over := before.UnixNano(), int64(trimBatch), tasks-most
	if over > 0 {
		until, limit = never, min(over, trimBatch)
	}
	rows, err := all(t.conn, bySince, state, until, limit)
	if err != nil {
		return 0, err
	}
	for _, r := range rows {
		if err := t.remove(r); err != nil {
			return 0, err
		}
	}
	if over > 0 && len(rows) > 0 {
		return trimBatch, nil // others may be too old
	}
	return len(rows), nil
}

// giveUp turns callbacks whose delivery window has ended into dead letters.
func (t *tx) giveUp(before time.Time, gaveUp func(*task.Record)) (int, error) {
	rows, err := all(t.conn, bySince, delivering, before.UnixNano(), trimBatch)
	if err != nil {
		return 0, err
	}
	held, err := all(t.conn, " INDEXED BY task_holder WHERE holder = ? AND state = 2 AND since <= ?", t.s.holder, before.UnixNano())
	if err != nil {
		return 0, err
	}
	n := 0
	for _, r := range append(rows, held...) {
		t.s.mu.Lock()
		busy := t.s.inFlight[r.seq] != nil
		t.s.mu.Unlock()
		if busy {
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
	return n, nil
}

// giveUpOne turns a callback into a dead letter.
func (t *tx) giveUpOne(r *row) error {
	to := r.place
	to.state, to.held = dead, false
	t.move(r, to)
	t.after(func() {
		t.s.endFlight(r.seq)
		t.s.dropDue(r.place.host, func(o *dueDelivery) bool { return o.seq == r.seq })
	})
	return t.exec("UPDATE task SET state = 4, version = version + 1, holder = NULL, at = NULL, since = ? WHERE seq = ?", t.now, r.seq)
}

// evict makes room. It first removes the results of done tasks, and then the oldest
// dead letters.
func (s *store) evict(ctx context.Context) error {
	s.room.evicting.Lock()
	defer s.room.evicting.Unlock()
	for _, state := range []int{done, dead} {
		for s.room.crowded() {
			least := 0
			if !s.room.pagesHelp() {
				least = maxInline + 1
			}
			n := 0
			err := s.update(ctx, func(t *tx) (err error) {
				n, err = t.evict(state, least)
				t.after(func() { s.measured = time.Time{} })
				return err
			})
			if err != nil {
				return err
			}
			if s.cfg.Sync > 0 {
				if err := s.syncLog(); err != nil {
					return err // the files of evicted bodies still exist
				}
			}
			s.measureDisk()
			if n == 0 {
				break
			}
		}
	}
	return nil
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
	rows, err := all(t.conn, ` INDEXED BY task_since WHERE state = ? AND state >= 2 AND holder IS NULL AND since >= ?
		AND coalesce(result, 0) >= ? ORDER BY since LIMIT ?`, state, from.since, least, evictBatch)
	if err != nil {
		return 0, err
	}
	if len(rows) > 0 {
		from.since = rows[len(rows)-1].since
	}
	for _, r := range rows {
		if state == dead {
			err = t.remove(r)
		} else {
			to := r.place
			err = t.dropResult(r, &to)
			t.move(r, to)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}
