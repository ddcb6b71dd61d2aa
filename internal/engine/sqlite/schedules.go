package sqlite

import (
	"context"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// NextRun implements [engine.Schedules].
func (s *store) NextRun(ctx context.Context, schedule string, first time.Time) (engine.Run, error) {
	var run engine.Run
	err := s.update(ctx, func(t *tx) error {
		t.exec("INSERT INTO schedule(name, last, next) VALUES (?, 0, ?) ON CONFLICT(name) DO NOTHING", schedule, nanos(first))
		t.query("SELECT last, next FROM schedule WHERE name = ?", []any{schedule}, func(r *sqlite3.Stmt) bool {
			run = engine.Run{Last: timeOf(r.ColumnInt64(0)), Next: timeOf(r.ColumnInt64(1))}
			return false
		})
		return nil
	})
	return run, err
}

// Advance implements [engine.Schedules].
func (s *store) Advance(ctx context.Context, schedule string, due, next time.Time) error {
	return s.update(ctx, func(t *tx) error {
		t.exec("UPDATE schedule SET last = next, next = ? WHERE name = ? AND next = ?", nanos(next), schedule, nanos(due))
		if t.Changes() != 1 {
			return engine.ErrLost
		}
		return nil
	})
}

// Runs implements [engine.Tasks].
func (s *store) Runs(ctx context.Context) (map[string]engine.Run, error) {
	runs := map[string]engine.Run{}
	err := s.read(ctx, func(c *conn) error {
		c.query("SELECT name, last, next FROM schedule", nil, func(stmt *sqlite3.Stmt) bool {
			runs[stmt.ColumnText(0)] = engine.Run{Last: timeOf(stmt.ColumnInt64(1)), Next: timeOf(stmt.ColumnInt64(2))}
			return true
		})
		return nil
	})
	return runs, err
}
