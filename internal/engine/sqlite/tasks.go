package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Wait implements [engine.Tasks].
func (s *store) Wait(ctx context.Context, id string, since uint64) (*task.Record, error) {
	w := make(chan struct{}, 1)
	s.mu.Lock()
	s.waiters[id] = append(s.waiters[id], w)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		left := slices.DeleteFunc(s.waiters[id], func(other chan struct{}) bool { return other == w })
		if len(left) == 0 {
			delete(s.waiters, id)
		} else {
			s.waiters[id] = left
		}
	}()
	for {
		rec, err := s.Get(ctx, id)
		if err != nil || rec.Version != since {
			return rec, err
		}
		if err := s.wait(ctx, w, time.Hour); err != nil {
			return nil, err
		}
	}
}

// exactDue is how many due deliveries are counted exactly. If more are due, all waiting
// deliveries are counted as due.
const exactDue = 20_000

// Stats implements [engine.Tasks].
func (s *store) Stats(ctx context.Context) (engine.Stats, error) {
	stats := engine.Stats{Tasks: map[task.State]int64{}}
	fresh, inFlight := int64(0), int64(0)
	s.mu.Lock()
	for _, h := range s.hosts {
		if !s.isPaused(h) {
			fresh += int64(len(h.due) - h.ahead)
		}
	}
	for _, d := range s.inFlight {
		if !d.place.held {
			inFlight++
		}
	}
	s.mu.Unlock()
	left, reserve := s.room.left()
	stats.Used = s.room.used()
	stats.Limit = min(s.room.max, stats.Used+max(0, left-reserve))
	err := s.read(ctx, func(c *conn) error {
		c.tally(func(state task.State, n int64) { stats.Tasks[state] = n })
		due, _ := c.number(`SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_at
			WHERE state = 2 AND holder IS NULL AND at <= ? LIMIT ?)`, time.Now().UnixNano(), exactDue)
		if due == exactDue {
			due = stats.Tasks[task.Delivering] - fresh
		}
		stats.Due = fresh + max(0, due-inFlight)
		return nil
	})
	return stats, err
}

// tally calls f with the number of tasks in each state.
func (c *conn) tally(f func(task.State, int64)) {
	c.query("SELECT state, tasks FROM tally", nil, func(r *sqlite3.Stmt) bool {
		f(task.State(r.ColumnText(0)), r.ColumnInt64(1))
		return true
	})
}

// Queues implements [engine.Tasks].
func (s *store) Queues(ctx context.Context) (list []engine.QueueStats, err error) {
	err = s.read(ctx, func(c *conn) error {
		c.query(`SELECT name, paused, queued, running,
			iif(queued > 0, (SELECT count(*) FROM task INDEXED BY task_ready WHERE queue = name AND state = 0 AND at > ?1), 0),
			iif(queued > 0, (SELECT iif(json_valid(CAST(doc AS TEXT)), CAST(doc AS TEXT) ->> 'created_at', NULL) FROM task INDEXED BY task_ready WHERE queue = name AND state = 0 AND at <= ?1 ORDER BY at, seq LIMIT 1), NULL)
			FROM queue WHERE paused = 1 OR queued > 0 OR running > 0 ORDER BY name`, []any{time.Now().UnixNano()}, func(r *sqlite3.Stmt) bool {
			q := engine.QueueStats{Queue: r.ColumnText(0), Paused: r.ColumnBool(1), Queued: r.ColumnInt64(2), Running: r.ColumnInt64(3), Delayed: r.ColumnInt64(4)}
			q.Oldest, _ = time.Parse(time.RFC3339Nano, r.ColumnText(5)) // zero if none is ready
			list = append(list, q)
			return true
		})
		return nil
	})
	return list, err
}

// Hosts implements [engine.Tasks]. It adds the first deliveries in memory to the counts
// of the table.
func (s *store) Hosts(ctx context.Context, after engine.Cursor, limit int) (page []engine.HostStats, next engine.Cursor, err error) {
	last := engine.HostStats{Pending: never}
	if position, err := after.Position(); err != nil {
		return nil, "", err
	} else if position != "" {
		if _, err := fmt.Sscan(position, &last.Pending, &last.Host); err != nil {
			return nil, "", fmt.Errorf("%w: %q", engine.ErrCursor, after)
		}
	}
	held, err := json.Marshal(s.heldOf())
	if err != nil {
		return nil, "", fmt.Errorf("listing hosts: %w", err)
	}
	err = s.read(ctx, func(c *conn) error {
		c.query(listHosts, []any{string(held), last.Pending, last.Host, limit + 1}, func(r *sqlite3.Stmt) bool {
			page = append(page, engine.HostStats{HostState: scanHost(r), Pending: r.ColumnInt64(10)})
			return true
		})
		if len(page) > limit {
			page = page[:limit]
			next = engine.NewCursor(fmt.Sprint(page[limit-1].Pending, " ", page[limit-1].Host))
		}
		for i := range page {
			s.addNext(c, &page[i])
		}
		return nil
	})
	return page, next, err
}

// listHosts lists the hosts of the table and those of ?1, which has their first deliveries
// in memory, by pending deliveries. SQLite merges the two lists.
const listHosts = selectHosts + ` INDEXED BY host_listed WHERE (waiting > 0 OR paused = 1 OR failures > 0)
	AND name NOT IN (SELECT key FROM json_each(?1)) AND waiting <= ?2 AND (waiting < ?2 OR name > ?3)
	UNION ALL SELECT key, ` + hostColumns + `, coalesce(waiting, 0) + value AS pending FROM json_each(?1) LEFT JOIN host ON name = key
	WHERE pending <= ?2 AND (pending < ?2 OR key > ?3) ORDER BY 11 DESC, 1 LIMIT ?4`

// heldOf returns how many first deliveries of each host are in memory.
func (s *store) heldOf() map[string]int {
	held := map[string]int{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, h := range s.hosts {
		if n := len(h.due) - h.ahead; n > 0 {
			held[name] = n
		}
	}
	for _, d := range s.inFlight {
		if d.place.held {
			held[d.place.host]++
		}
	}
	return held
}

// addNext adds how many deliveries of a host are in flight, and when the next of the
// others is due.
func (s *store) addNext(c *conn, stats *engine.HostStats) {
	first := int64(never)
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.hosts[stats.Host]; h != nil {
		stats.InFlight = h.inFlight
		if len(h.due) > 0 {
			first = h.due[0].at
		}
	}
	c.query("SELECT seq, at FROM task INDEXED BY task_due WHERE host = ? AND state = 2 AND holder IS NULL ORDER BY at LIMIT ?",
		[]any{stats.Host, stats.InFlight + 1}, func(r *sqlite3.Stmt) bool {
			if s.inFlight[r.ColumnInt64(0)] != nil {
				return true
			}
			first = min(first, r.ColumnInt64(1))
			return false
		})
	if first != never {
		stats.Next = timeOf(first)
	}
}
