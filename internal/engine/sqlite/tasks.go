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
		select {
		case <-w:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.stop:
			return nil, errClosed
		}
	}
}

// Stats implements [engine.Tasks].
func (s *store) Stats(ctx context.Context) (engine.Stats, error) {
	if err := s.usable(ctx); err != nil {
		return engine.Stats{}, err
	}
	stats := engine.Stats{Tasks: map[task.State]int64{}}
	now := time.Now().UnixNano()
	s.mu.Lock()
	for state, n := range s.counts {
		stats.Tasks[stateNames[state]] = n
	}
	inFlight := 0
	for _, h := range s.hosts {
		if !h.state.Paused {
			stats.Due += int64(len(h.fresh))
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
	s.room.mu.Unlock()
	err := s.read(ctx, func(c *conn) error {
		due, _, err := c.number(`SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_at
			WHERE state = 2 AND holder IS NULL AND at <= ? LIMIT ?)`, now, exactDue)
		if err == nil && due == exactDue {
			due = stats.Tasks[task.Delivering] - stats.Due
		}
		stats.Due += max(0, due-int64(inFlight))
		return err
	})
	return stats, err
}

// exactDue is how many due deliveries are counted exactly. If more are due, all waiting
// deliveries are counted as due.
const exactDue = 20_000

// Queues implements [engine.Tasks].
func (s *store) Queues(ctx context.Context) ([]engine.QueueStats, error) {
	s.mu.Lock()
	var (
		list []engine.QueueStats
		ids  []int64
	)
	for _, q := range s.queues {
		if q.paused || q.queued > 0 || q.running > 0 {
			list = append(list, engine.QueueStats{Queue: q.name, Queued: q.queued, Running: q.running, Paused: q.paused})
			ids = append(ids, q.id)
		}
	}
	s.mu.Unlock()
	err := s.read(ctx, func(c *conn) error {
		now := time.Now().UnixNano()
		for i, id := range ids {
			if list[i].Queued == 0 {
				continue
			}
			delayed, _, err := c.number("SELECT count(*) FROM task INDEXED BY task_ready WHERE queue = ? AND state = 0 AND at > ?", id, now)
			if err != nil {
				return err
			}
			list[i].Delayed = min(delayed, list[i].Queued)
			r, err := one(c, " INDEXED BY task_queue WHERE queue = ? AND state = 0 ORDER BY seq LIMIT 1", id)
			if err != nil || r == nil {
				return err
			}
			rec, err := r.record()
			if err != nil {
				return fmt.Errorf("reading the oldest task of queue %s: %w", list[i].Queue, err)
			}
			list[i].Oldest = rec.CreatedAt
		}
		return nil
	})
	slices.SortFunc(list, func(a, b engine.QueueStats) int { return cmp.Compare(a.Queue, b.Queue) })
	return list, err
}

// listed is a host in a page.
type listed struct {
	*host
	pending int64
}

func (h listed) compare(pending int64, name string) int {
	return cmp.Or(cmp.Compare(pending, h.pending), cmp.Compare(h.state.Host, name))
}

// Hosts implements [engine.Tasks]. It adds the deliveries in memory to the counts of
// the table.
func (s *store) Hosts(ctx context.Context, after engine.Cursor, limit int) ([]engine.HostStats, engine.Cursor, error) {
	pending, name := int64(never), ""
	if after != "" {
		first, rest, ok := strings.Cut(string(after), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if !ok || err != nil {
			return nil, "", fmt.Errorf("%w: %q", engine.ErrCursor, after)
		}
		pending, name = n, rest
	}
	var stats []engine.HostStats
	next := engine.Cursor("")
	err := s.read(ctx, func(c *conn) error {
		stats, next = nil, ""
		page, err := s.hostPage(c, pending, name, limit+1)
		if err != nil {
			return err
		}
		if len(page) > limit {
			page = page[:limit]
			next = engine.Cursor(fmt.Sprintf("%d %s", page[limit-1].pending, page[limit-1].state.Host))
		}
		for _, l := range page {
			h := engine.HostStats{HostState: l.state, Pending: l.pending}
			if h.InFlight, h.Next, err = s.next(c, l.id); err != nil {
				return err
			}
			stats = append(stats, h)
		}
		return nil
	})
	return stats, next, err
}

// hostPage returns the first hosts after a position.
func (s *store) hostPage(c *conn, pending int64, name string, limit int) (page []listed, err error) {
	held := map[int64]int64{}
	s.mu.Lock()
	for _, h := range s.hosts {
		if h.held > 0 {
			held[h.id] = h.held
		}
	}
	s.mu.Unlock()
	add := func(h *host, waiting int64) {
		if l := (listed{h, waiting + held[h.id]}); l.compare(pending, name) > 0 {
			page = append(page, l)
		}
	}
	err = c.query("SELECT "+hostColumns+` FROM host INDEXED BY host_listed WHERE (waiting > 0 OR paused = 1 OR failures > 0)
		AND waiting <= ? AND (waiting < ? OR name > ?) ORDER BY waiting DESC, name`, []any{pending, pending, name}, func(r *sqlite3.Stmt) bool {
		if h := scanHost(r); held[h.id] == 0 {
			add(h, r.ColumnInt64(4))
		}
		return len(page) < limit
	})
	for id := range held {
		if err == nil {
			err = c.query(selectHosts+" WHERE id = ?", []any{id}, func(r *sqlite3.Stmt) bool {
				add(scanHost(r), r.ColumnInt64(4))
				return true
			})
		}
	}
	slices.SortFunc(page, func(a, b listed) int { return a.compare(b.pending, b.state.Host) })
	return page[:min(limit, len(page))], err
}

// next returns how many deliveries of a host are in flight, and when the next of the
// others is due.
func (s *store) next(c *conn, id int64) (inFlight int64, at time.Time, err error) {
	first := int64(never)
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.hosts[id]; h != nil {
		inFlight = h.inFlight
		if len(h.fresh) > 0 {
			first = h.fresh[0].at
		}
	}
	err = c.query("SELECT seq, at FROM task INDEXED BY task_due WHERE host = ? AND state = 2 AND holder IS NULL ORDER BY at LIMIT ?",
		[]any{id, inFlight + 1}, func(r *sqlite3.Stmt) bool {
			if s.inFlight[r.ColumnInt64(0)] != nil {
				return true
			}
			first = min(first, r.ColumnInt64(1))
			return false
		})
	if first != never {
		at = timeOf(first)
	}
	return inFlight, at, err
}
