package sqlite

import (
	"cmp"
	"context"
	"errors"
	"math"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	// trimBatch is how many tasks are removed in one commit; others wait for it.
	trimBatch = 200
	// maxTrimInterval is how often it is looked for what has expired.
	maxTrimInterval = 10 * time.Second

	defaultDeliveryWindow = 30 * 24 * time.Hour
)

// limits returns the settings, with what stands for no limit.
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

// maintain removes what has expired, between the commits of others.
func (s *store) maintain() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(s.stopped(), cancel)()
	for {
		l := s.limits()
		if err := s.trim(ctx, l); err != nil && !s.isClosing() && !errors.Is(err, engine.ErrFull) {
			s.log.Warn("removing expired tasks failed", zap.Error(err))
		}
		if s.room.crowded() {
			if err := s.evict(ctx); err != nil && !s.isClosing() {
				s.log.Warn("evicting results failed", zap.Error(err))
			}
		}
		interval := min(l.Retention, l.Dead, l.DeliveryWindow) / 10
		timer := time.NewTimer(min(max(interval, 100*time.Millisecond), maxTrimInterval))
		select {
		case <-s.room.wake:
		case <-timer.C:
		case <-s.stop:
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// stopped returns a context that ends when the store is closed.
func (s *store) stopped() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	s.tasks.Go(func() {
		<-s.stop
		cancel()
	})
	return ctx
}

// trim removes what has expired.
func (s *store) trim(ctx context.Context, l engine.Settings) error {
	now := time.Now()
	var buried []*row
	for _, batch := range []func(*tx) (int, error){
		func(t *tx) (int, error) { return t.trimEnded(done, now.Add(-l.Retention), l.RetentionCount) },
		func(t *tx) (int, error) { return t.trimEnded(dead, now.Add(-l.Dead), l.DeadCount) },
		func(t *tx) (int, error) {
			rows, err := t.giveUp(now.Add(-l.DeliveryWindow))
			t.after(func() { buried = append(buried, rows...) })
			return len(rows), err
		},
		func(t *tx) (int, error) {
			return t.trimRows("DELETE FROM key WHERE hash IN (SELECT hash FROM key WHERE expires <= ? LIMIT ?)", now.UnixNano())
		},
		(*tx).trimDomains,
		func(t *tx) (int, error) { return t.trimHosts(now.Add(-24 * time.Hour)) },
	} {
		if err := s.inBatches(ctx, batch); err != nil {
			return err
		}
	}
	if l.GaveUp != nil {
		s.tellGaveUp(l.GaveUp, buried)
	}
	return nil
}

// inBatches repeats a batch until it finds less than it could remove.
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

// trimEnded removes tasks that ended before a time, or are more than most.
func (t *tx) trimEnded(state int, before time.Time, most int64) (int, error) {
	t.s.mu.Lock()
	over := t.s.counts[state] - most
	t.s.mu.Unlock()
	var rows []*row
	err := t.query(`SELECT `+taskColumns+` FROM task t INDEXED BY task_since JOIN record r ON r.seq = t.seq
		WHERE t.state = ? AND t.state >= 2 ORDER BY t.since LIMIT ?`, []any{state, trimBatch}, func(s *sqlite3.Stmt) bool {
		r := scanRow(s)
		if r.since > before.UnixNano() && over <= int64(len(rows)) {
			return false
		}
		rows = append(rows, r)
		return true
	})
	if err != nil {
		return 0, err
	}
	for _, r := range rows {
		if err := t.remove(r.seq, r.id, r.place, true); err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}

// giveUp makes dead letters of callbacks that have been due for too long.
func (t *tx) giveUp(before time.Time) (buried []*row, _ error) {
	var rows []*row
	err := t.query(`SELECT `+taskColumns+` FROM task t INDEXED BY task_since JOIN record r ON r.seq = t.seq
		WHERE t.state = 2 AND t.state >= 2 AND t.since < ? ORDER BY t.since LIMIT ?`, []any{before.UnixNano(), trimBatch}, func(s *sqlite3.Stmt) bool {
		rows = append(rows, scanRow(s))
		return true
	})
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		t.s.mu.Lock()
		busy := t.s.inFlight[r.seq] != nil
		t.s.mu.Unlock()
		if busy {
			continue // its attempt ends by itself
		}
		if err := t.bury(r); err != nil {
			return nil, err
		}
		buried = append(buried, r)
	}
	return buried, nil
}

// tellGaveUp tells the gateway of callbacks that were given up.
func (s *store) tellGaveUp(gaveUp func(*task.Record), buried []*row) {
	for _, r := range buried {
		r.place.state, r.version = dead, r.version+1
		if rec, err := r.record(); err == nil { // nothing is known of a damaged one
			gaveUp(rec)
		}
	}
}

// bury makes a dead letter of a callback.
func (t *tx) bury(r *row) error {
	err := t.exec("UPDATE task SET state = 4, version = version + 1, at = NULL, since = ? WHERE seq = ?", t.now, r.seq)
	to := r.place
	to.state = dead
	t.move(r.id, r.place, to)
	t.after(func() {
		t.s.land(r.seq)
		t.s.dropFresh(r.seq)
	})
	return err
}

// trimDomains forgets domains without tasks.
func (t *tx) trimDomains() (int, error) {
	clear(t.s.domains)
	// A domain that was added in this transaction has no bytes until then.
	if err := t.flush(); err != nil {
		return 0, err
	}
	return t.trimRows("DELETE FROM domain WHERE id IN (SELECT id FROM domain WHERE bytes <= ? LIMIT ?)", 0)
}

// trimHostsBatch is how many hosts are looked at in one commit.
const trimHostsBatch = 2000

// trimHosts forgets hosts that have no tasks and did not answer since a time. It
// goes on where it stopped before: there may be a million.
func (t *tx) trimHosts(before time.Time) (int, error) {
	from := t.s.trimmedHosts
	last, more, err := t.number("SELECT max(id) FROM (SELECT id FROM host WHERE id > ? ORDER BY id LIMIT ?)", from, trimHostsBatch)
	if err != nil {
		return 0, err
	}
	t.s.trimmedHosts = last
	if !more && from > 0 {
		return t.trimHosts(before)
	}
	n := 0
	err = t.query(`DELETE FROM host WHERE id > ? AND id <= ? AND paused = 0 AND failures = 0 AND answered < ?
		AND NOT EXISTS (SELECT 1 FROM task WHERE task.host = host.id) RETURNING id`,
		[]any{from, last, before.UnixNano()}, func(s *sqlite3.Stmt) bool {
			t.s.mu.Lock()
			if h := t.s.hosts[s.ColumnInt64(0)]; h != nil {
				t.s.reschedule(h, never)
				delete(t.s.hosts, h.id)
				delete(t.s.hostNames, h.state.Host)
			}
			t.s.mu.Unlock()
			n++
			return true
		})
	return n, err
}

// evict makes room: first the results of done tasks go, then the oldest dead
// letters.
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
					return err // the files of what was evicted are still there
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

// evictBatch is how many tasks are evicted at once. More would be evicted than
// is needed.
const evictBatch = 20

// evict takes the results of done tasks or removes dead letters, the oldest first,
// if their results have at least so many bytes.
func (t *tx) evict(state, least int) (int, error) {
	query := "SELECT " + taskColumns + ` FROM task t INDEXED BY task_evict JOIN record r ON r.seq = t.seq
		WHERE t.state = 3 AND t.result IS NOT NULL AND t.result >= ? AND t.result > 0 ORDER BY t.since LIMIT ?`
	if state == dead {
		query = "SELECT " + taskColumns + ` FROM task t INDEXED BY task_since JOIN record r ON r.seq = t.seq
			WHERE t.state = 4 AND t.state >= 2 AND coalesce(t.result, 0) >= ? ORDER BY t.since LIMIT ?`
	}
	var rows []*row
	err := t.query(query, []any{least, evictBatch}, func(s *sqlite3.Stmt) bool {
		rows = append(rows, scanRow(s))
		return true
	})
	if err != nil {
		return 0, err
	}
	for _, r := range rows {
		if state == dead {
			err = t.remove(r.seq, r.id, r.place, true)
		} else {
			to := r.place
			err = t.dropResult(r.seq, &to, r.result)
			t.move(r.id, r.place, to)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(rows), nil
}
