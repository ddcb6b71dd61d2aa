package sqlite

import (
	"context"
	"math"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// load counts what is stored. The indexes have all that it reads.
func (s *store) load(ctx context.Context) error {
	c := s.writer
	c.SetInterrupt(ctx)
	defer c.SetInterrupt(context.Background())
	var err error
	each := func(query string, row func(*sqlite3.Stmt)) {
		if err == nil {
			err = c.query(query, nil, func(stmt *sqlite3.Stmt) bool {
				row(stmt)
				return true
			})
		}
	}
	each("SELECT max(seq) FROM task", func(r *sqlite3.Stmt) { s.lastSeq = r.ColumnInt64(0) })
	each("SELECT state, count(*) FROM task INDEXED BY task_state GROUP BY state", func(r *sqlite3.Stmt) {
		if n := r.ColumnInt(0); n >= 0 && n < states {
			s.counts[n] = r.ColumnInt64(1)
		}
	})
	each("SELECT id, name, paused FROM queue", func(r *sqlite3.Stmt) {
		q := &queue{id: r.ColumnInt64(0), name: r.ColumnText(1), paused: r.ColumnBool(2)}
		s.queues[q.id], s.queueNames[q.name] = q, q
	})
	each("SELECT queue, count(*) FROM task INDEXED BY task_ready WHERE state = 0 GROUP BY queue", func(r *sqlite3.Stmt) {
		if q := s.queues[r.ColumnInt64(0)]; q != nil {
			q.queued = r.ColumnInt64(1)
		}
	})
	each("SELECT queue, count(*) FROM task INDEXED BY task_state WHERE state = 1 AND queue IS NOT NULL GROUP BY queue", func(r *sqlite3.Stmt) {
		if q := s.queues[r.ColumnInt64(0)]; q != nil {
			q.running = r.ColumnInt64(1)
		}
	})
	each(selectHosts+" WHERE paused = 1 OR failures > 0", func(r *sqlite3.Stmt) { s.remember(scanHost(r)) })
	// A query for each host would take ten times as long.
	each("SELECT "+hostColumns+`, due.pending, due.next, due.trusted FROM (SELECT host, count(*) AS pending, min(at) AS next,
		sum(trusted) AS trusted FROM task INDEXED BY task_due WHERE state = 2 GROUP BY host) AS due CROSS JOIN host ON id = due.host`, func(r *sqlite3.Stmt) {
		h := s.hosts[r.ColumnInt64(0)]
		if h == nil {
			h = scanHost(r)
			s.hosts[h.id], s.hostNames[h.state.Host] = h, h
		}
		h.pending, h.trusted = r.ColumnInt64(10), r.ColumnInt64(12)
		s.reschedule(h, r.ColumnInt64(11))
	})
	return err
}

// recoverBatch is how many tasks are recovered in one transaction.
const recoverBatch = 500

// recover ends the leases that processes before this one have left.
func (s *store) recover(ctx context.Context) error {
	after, n := int64(math.MinInt64), 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		var rows []*row
		err := s.writer.query(selectTask+` WHERE t.state = 1 AND t.seq > ? AND t.holder <> ? ORDER BY t.seq LIMIT ?`,
			[]any{after, s.holder, recoverBatch}, func(stmt *sqlite3.Stmt) bool {
				rows = append(rows, scanRow(stmt))
				return true
			})
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
		s.retire(t.unneeded)
		after, n = rows[len(rows)-1].seq, n+len(rows)
	}
	if n > 0 {
		s.log.Info("leases of an earlier process expired", zap.Int("tasks", n))
	}
	return nil
}

// expire ends the lease of a task whose holder died.
func (t *tx) expire(r *row) error {
	if r.place.queue != 0 && r.starts < r.maxStarts {
		err := t.exec(`UPDATE task SET state = 0, version = version + 1, max_starts = NULL, holder = NULL, since = ?
			WHERE seq = ?`, t.now, r.seq)
		to := r.place
		to.state = queued
		t.move(r.id, r.place, to)
		return err
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
