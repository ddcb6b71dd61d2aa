package sqlite

import (
	"context"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// NextRun implements [engine.Schedules].
func (s *store) NextRun(ctx context.Context, schedule string, first time.Time) (engine.Run, error) {
	run, found, err := s.findRun(ctx, schedule)
	if err != nil || found {
		return run, err
	}
	err = s.update(ctx, func(t *tx) error {
		return t.exec("INSERT INTO schedule(name, last, next) VALUES (?, 0, ?) ON CONFLICT(name) DO NOTHING", schedule, nanos(first))
	})
	if err != nil {
		return engine.Run{}, err
	}
	run, _, err = s.findRun(ctx, schedule)
	return run, err
}

func (s *store) findRun(ctx context.Context, schedule string) (run engine.Run, found bool, err error) {
	err = s.read(ctx, func(c *conn) error {
		return c.query("SELECT last, next FROM schedule WHERE name = ?", []any{schedule}, func(stmt *sqlite3.Stmt) bool {
			run, found = engine.Run{Last: timeOf(stmt.ColumnInt64(0)), Next: timeOf(stmt.ColumnInt64(1))}, true
			return false
		})
	})
	return run, found, err
}

// Advance implements [engine.Schedules].
func (s *store) Advance(ctx context.Context, schedule string, due, next time.Time) error {
	return s.update(ctx, func(t *tx) error {
		return t.fenced("UPDATE schedule SET last = next, next = ? WHERE name = ? AND next = ?", nanos(next), schedule, nanos(due))
	})
}

// Runs implements [engine.Tasks].
func (s *store) Runs(ctx context.Context) (map[string]engine.Run, error) {
	runs := map[string]engine.Run{}
	err := s.read(ctx, func(c *conn) error {
		return c.query("SELECT name, last, next FROM schedule", nil, func(stmt *sqlite3.Stmt) bool {
			runs[stmt.ColumnText(0)] = engine.Run{Last: timeOf(stmt.ColumnInt64(1)), Next: timeOf(stmt.ColumnInt64(2))}
			return true
		})
	})
	return runs, err
}
