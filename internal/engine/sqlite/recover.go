package sqlite

import (
	"context"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// loadPauses reads which queues and hosts are paused.
func (s *store) loadPauses() error {
	s.writer.query(`SELECT name, '' FROM queue WHERE paused = 1
		UNION ALL SELECT '', name FROM host INDEXED BY host_paused WHERE paused = 1`, nil, func(r *sqlite3.Stmt) bool {
		s.paused[engine.Target{Queue: r.ColumnText(0), Host: r.ColumnText(1)}] = true
		return true
	})
	return s.writer.failed()
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
		n := 0
		err := s.apply(func(t *tx) error {
			rows := all(t.conn, " INDEXED BY task_holder WHERE holder IS NOT NULL AND (state = 2 OR holder <> ?) LIMIT ?", s.holder, recoverBatch)
			n = len(rows)
			for _, r := range rows {
				if r.place.state == running {
					leases++
				}
				if err := t.expire(r); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if n == 0 {
			break
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
	switch {
	case r.place.state == delivering:
		to := r.place
		to.held = false
		return t.step(r, to, "UPDATE task SET holder = NULL, at = ? WHERE seq = ?", min(r.since, t.now), r.seq)
	case r.place.queue != "" && r.starts < r.maxStarts:
		return t.requeue(r, r.starts, time.Time{}, nil)
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
	rec.DropRequest()
	doc, err := encode(rec)
	if err != nil {
		return err
	}
	return t.settle(r, rec, doc, nil, false)
}
