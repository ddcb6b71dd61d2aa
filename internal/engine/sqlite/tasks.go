package sqlite

import (
	"cmp"
	"context"
	"fmt"
	"slices"
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
			return nil, fmt.Errorf("%w: it is closed", engine.ErrUnavailable)
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
	var hosts []countable
	uncounted := int64(0) // of more hosts than are looked at
	for _, h := range s.hosts {
		if n := h.pending - h.inFlight; n > 0 && !h.state.Paused && (h.next <= now || h.reported) {
			if len(hosts) < exactHosts {
				hosts = append(hosts, countable{h.id, n, h.inFlight})
			} else {
				uncounted += n
			}
		}
	}
	s.mu.Unlock()
	due, err := s.countDue(ctx, hosts, now)
	if err != nil {
		return stats, err
	}
	stats.Due = due + uncounted
	s.room.mu.Lock()
	stats.Used, stats.Limit = s.room.used(), s.room.max
	s.room.mu.Unlock()
	return stats, nil
}

// countable is a host of which n deliveries are due or wait for a retry.
type countable struct{ id, n, inFlight int64 }

const (
	// exactDue is how many deliveries of a host are counted. If more are due, all
	// that wait are taken to be.
	exactDue = 2000
	// exactWork bounds what counting looks at, over all hosts, of which each costs
	// as much as a hundred deliveries.
	exactWork  = 50_000
	exactHosts = exactWork / 100
)

// countDue counts deliveries that are due.
func (s *store) countDue(ctx context.Context, hosts []countable, now int64) (due int64, _ error) {
	err := s.read(ctx, func(c *conn) error {
		due = 0
		work := int64(0)
		for _, h := range hosts {
			if work > exactWork {
				due += h.n
				continue
			}
			n, _, err := c.number(`SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_due
				WHERE host = ? AND state = 2 AND at <= ? LIMIT ?)`, h.id, now, exactDue+h.inFlight)
			if err != nil {
				return err
			}
			work += n + 100
			if n -= h.inFlight; n >= exactDue {
				n = h.n
			}
			due += max(0, n)
		}
		return nil
	})
	return due, err
}

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
			var doc []byte
			err = c.query(`SELECT r.doc FROM task t INDEXED BY task_queue JOIN record r ON r.seq = t.seq
				WHERE t.queue = ? AND t.state = 0 ORDER BY t.created LIMIT 1`, []any{id}, func(stmt *sqlite3.Stmt) bool {
				doc = stmt.ColumnBlob(0, nil)
				return false
			})
			if err != nil || doc == nil {
				return err
			}
			rec, err := decode(doc)
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
