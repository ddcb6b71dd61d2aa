package sqlite

import (
	"context"
	"time"

	"github.com/ncruces/go-sqlite3"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// load reads the counts. It takes as long with a million tasks as with none.
func (s *store) load() error {
	c := s.writer
	err := c.query("SELECT queued, running, delivering, done, dead FROM tally", nil, func(r *sqlite3.Stmt) bool {
		for state := range s.counts {
			s.counts[state] = r.ColumnInt64(state)
		}
		return true
	})
	if err != nil {
		return err
	}
	return c.query("SELECT id, name, paused, queued, running FROM queue", nil, func(r *sqlite3.Stmt) bool {
		q := &queue{id: r.ColumnInt64(0), name: r.ColumnText(1), paused: r.ColumnBool(2), queued: r.ColumnInt64(3), running: r.ColumnInt64(4)}
		s.queues[q.id], s.queueNames[q.name] = q, q
		return true
	})
}

// recoverBatch is how many tasks are recovered in one transaction.
const recoverBatch = 500

// recover ends the leases of previous processes, and moves the first deliveries that
// those had in memory to the table.
func (s *store) recover(ctx context.Context) error {
	leases := 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		rows, err := all(s.writer, " INDEXED BY task_holder WHERE holder IS NOT NULL AND (state = 2 OR holder <> ?) LIMIT ?", s.holder, recoverBatch)
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			break
		}
		t, err := s.transact([]*op{{apply: func(t *tx) error {
			for _, r := range rows {
				if err := t.expire(r); err != nil {
					return err
				}
			}
			return nil
		}}})
		if err != nil {
			return err
		}
		s.mu.Lock()
		t.publish()
		s.mu.Unlock()
		s.removeSynced(t.unneeded)
		for _, r := range rows {
			if r.place.state == running {
				leases++
			}
		}
	}
	if leases > 0 {
		s.log.Info("leases of an earlier process expired", zap.Int("tasks", leases))
	}
	return nil
}

// expire ends the lease of a task whose holder died. It makes a first delivery that was
// in memory due.
func (t *tx) expire(r *row) error {
	to := r.place
	to.held = false
	switch {
	case r.place.state == delivering:
		t.move(r.id, r.place, to)
		return t.exec("UPDATE task SET holder = NULL, at = ? WHERE seq = ?", min(r.since, t.now), r.seq)
	case r.place.queue != 0 && r.starts < r.maxStarts:
		to.state = queued
		t.move(r.id, r.place, to)
		return t.exec("UPDATE task SET state = 0, version = version + 1, max_starts = NULL, holder = NULL, since = ? WHERE seq = ?", t.now, r.seq)
	}
	return t.fail(r, task.ErrorHolderDied)
}

// fail settles a queued or running task as FAILED.
func (t *tx) fail(r *row, reason string) error {
	rec, err := r.record()
	if err != nil {
		return err
	}
	rec.Status, rec.Error, rec.FinishedAt, rec.Result = task.Failed, reason, time.Unix(0, t.now).UTC(), nil
	rec.ForgetRequest()
	doc, err := encode(rec)
	if err != nil {
		return err
	}
	return t.settle(&verdict{seq: r.seq, version: r.version, from: r.place, rec: rec, doc: doc, dropRequest: r.request >= 0})
}
