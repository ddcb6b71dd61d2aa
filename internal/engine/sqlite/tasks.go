package sqlite

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Wait implements [engine.Tasks].
func (s *store) Wait(ctx context.Context, id string, since uint64) (*task.Record, error) {
	w := make(waiter, 1)
	s.mu.Lock()
	s.waiters[id] = append(s.waiters[id], w)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		left := slices.DeleteFunc(s.waiters[id], func(other waiter) bool { return other == w })
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
		if _, err := s.wait(ctx, w, time.Hour); err != nil {
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
	s.room.mu.Lock()
	stats.Used, stats.Limit = s.room.used(), s.room.max
	left, reserve := s.room.left()
	stats.Limit = min(stats.Limit, stats.Used+max(0, left-reserve))
	s.room.mu.Unlock()
	err := s.read(ctx, func(c *conn) error {
		if err := c.tally(func(state task.State, n int64) { stats.Tasks[state] = n }); err != nil {
			return err
		}
		due, _, err := c.number(`SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_at
			WHERE state = 2 AND holder IS NULL AND at <= ? LIMIT ?)`, time.Now().UnixNano(), exactDue)
		if due == exactDue {
			due = stats.Tasks[task.Delivering] - fresh
		}
		stats.Due = fresh + max(0, due-inFlight)
		return err
	})
	return stats, err
}

// tally calls f with the number of tasks in each state.
func (c *conn) tally(f func(task.State, int64)) error {
	return c.query("SELECT state, tasks FROM tally", nil, func(r *sqlite3.Stmt) bool {
		f(task.State(r.ColumnText(0)), r.ColumnInt64(1))
		return true
	})
}

// Queues implements [engine.Tasks].
func (s *store) Queues(ctx context.Context) (list []engine.QueueStats, err error) {
	err = s.read(ctx, func(c *conn) error {
		list = nil
		var oldest error
		err := c.query(`SELECT name, paused, queued, running,
			iif(queued > 0, (SELECT count(*) FROM task INDEXED BY task_ready WHERE queue = name AND state = 0 AND at > ?1), 0),
			iif(queued > 0, (SELECT doc FROM task INDEXED BY task_ready WHERE queue = name AND state = 0 AND at <= ?1 ORDER BY at, seq LIMIT 1), NULL)
			FROM queue WHERE paused = 1 OR queued > 0 OR running > 0 ORDER BY name`, []any{time.Now().UnixNano()}, func(r *sqlite3.Stmt) bool {
			q := engine.QueueStats{Queue: r.ColumnText(0), Paused: r.ColumnBool(1), Queued: r.ColumnInt64(2), Running: r.ColumnInt64(3), Delayed: r.ColumnInt64(4)}
			if doc := r.ColumnRawBlob(5); doc != nil {
				rec, err := task.Decode(doc)
				if err != nil {
					oldest = fmt.Errorf("reading the oldest task of queue %s: %w", q.Queue, err)
					return false
				}
				q.Oldest = rec.CreatedAt
			}
			list = append(list, q)
			return true
		})
		return cmp.Or(err, oldest)
	})
	return list, err
}

// Hosts implements [engine.Tasks]. It adds the first deliveries in memory to the counts
// of the table.
func (s *store) Hosts(ctx context.Context, after engine.Cursor, limit int) ([]engine.HostStats, engine.Cursor, error) {
	last := engine.HostStats{Pending: never}
	if after != "" {
		first, name, ok := strings.Cut(string(after), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if !ok || err != nil {
			return nil, "", fmt.Errorf("%w: %q", engine.ErrCursor, after)
		}
		last.Pending, last.Host = n, name
	}
	var page []engine.HostStats
	next := engine.Cursor("")
	err := s.read(ctx, func(c *conn) (err error) {
		next = ""
		if page, err = s.hostPage(c, last, limit+1); err != nil {
			return err
		}
		if len(page) > limit {
			page = page[:limit]
			next = engine.Cursor(fmt.Sprintf("%d %s", page[limit-1].Pending, page[limit-1].Host))
		}
		for i := range page {
			if err := s.addNext(c, &page[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return page, next, err
}

func compareHosts(a, b engine.HostStats) int {
	return cmp.Or(cmp.Compare(b.Pending, a.Pending), cmp.Compare(a.Host, b.Host))
}

// hostPage returns the first hosts after the last one.
func (s *store) hostPage(c *conn, last engine.HostStats, limit int) (page []engine.HostStats, err error) {
	held := map[string]int64{}
	s.mu.Lock()
	for name, h := range s.hosts {
		if n := int64(len(h.due) - h.ahead); n > 0 {
			held[name] = n
		}
	}
	for _, d := range s.inFlight {
		if d.place.held {
			held[d.place.host]++
		}
	}
	s.mu.Unlock()
	add := func(h engine.HostStats) {
		if compareHosts(last, h) < 0 {
			page = append(page, h)
		}
	}
	err = c.query(selectHosts+` INDEXED BY host_listed WHERE (waiting > 0 OR paused = 1 OR failures > 0)
		AND waiting <= ? AND (waiting < ? OR name > ?) ORDER BY waiting DESC, name`, []any{last.Pending, last.Pending, last.Host},
		func(r *sqlite3.Stmt) bool {
			if h := scanHost(r); held[h.Host] == 0 {
				add(engine.HostStats{HostState: h, Pending: r.ColumnInt64(3)})
			}
			return len(page) < limit
		})
	for name, n := range held {
		h := engine.HostStats{HostState: engine.HostState{Host: name}, Pending: n}
		if err == nil {
			err = c.query(selectHosts+" WHERE name = ?", []any{name}, func(r *sqlite3.Stmt) bool {
				h.HostState, h.Pending = scanHost(r), n+r.ColumnInt64(3)
				return false
			})
		}
		add(h)
	}
	slices.SortFunc(page, compareHosts)
	return page[:min(limit, len(page))], err
}

// addNext adds how many deliveries of a host are in flight, and when the next of the
// others is due.
func (s *store) addNext(c *conn, stats *engine.HostStats) error {
	first := int64(never)
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.hosts[stats.Host]; h != nil {
		stats.InFlight = h.inFlight
		if len(h.due) > 0 {
			first = h.due[0].at
		}
	}
	err := c.query("SELECT seq, at FROM task INDEXED BY task_due WHERE host = ? AND state = 2 AND holder IS NULL ORDER BY at LIMIT ?",
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
	return err
}
