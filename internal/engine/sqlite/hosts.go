package sqlite

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// host is what is kept of a host in memory, guarded by store.mu.
type host struct {
	id       int64
	state    engine.HostState
	pending  int64 // deliveries due, in flight or waiting for a retry
	trusted  int64 // of them, those to the operator's own URL
	inFlight int64
	fresh    []int64 // first deliveries kept in store.fresh, the oldest first
	freshN   int64   // how many of them are still there

	next     int64 // the earliest due time of what is not in flight, or before it
	reported bool  // DueHosts has reported it, and Take has not come to its end since
	index    int   // in store.due; -1 if it is not there
}

const never = math.MaxInt64

// What scanHost reads.
const (
	hostColumns = "id, name, paused, window, average, answered, failures, failing_since, last_error, last_status"
	selectHosts = "SELECT " + hostColumns + " FROM host"
)

func newHost(id int64, state engine.HostState) *host {
	return &host{id: id, state: state, next: never, index: -1}
}

func scanHost(s *sqlite3.Stmt) *host {
	return newHost(s.ColumnInt64(0), engine.HostState{
		Host: s.ColumnText(1), Paused: s.ColumnBool(2), Window: s.ColumnInt(3), Average: time.Duration(s.ColumnInt64(4)),
		AnsweredAt: timeOf(s.ColumnInt64(5)), Failures: s.ColumnInt(6), FailingSince: timeOf(s.ColumnInt64(7)),
		LastError: s.ColumnText(8), LastStatus: s.ColumnInt(9),
	})
}

// maxIdleHosts bounds how many hosts without deliveries are kept in memory.
const maxIdleHosts = 4096

// remember keeps a host in memory. store.mu is held.
func (s *store) remember(h *host) {
	if len(s.hosts) > maxIdleHosts && len(s.hosts) > 2*len(s.due) {
		for id, other := range s.hosts {
			if other.pending == 0 && other.state.Failures == 0 && !other.state.Paused && len(s.hosts) > maxIdleHosts/2 {
				s.reschedule(other, never)
				delete(s.hosts, id)
				delete(s.hostNames, other.state.Host)
			}
		}
	}
	s.hosts[h.id], s.hostNames[h.state.Host] = h, h
}

// hostHeap has the hosts that are to be reported, by their next due time.
type hostHeap []*host

func (h hostHeap) Len() int           { return len(h) }
func (h hostHeap) Less(i, j int) bool { return h[i].next < h[j].next }
func (h hostHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *hostHeap) Push(x any) {
	x.(*host).index = len(*h)
	*h = append(*h, x.(*host))
}
func (h *hostHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	x.index = -1
	return x
}

// reschedule sets when a host has something due. store.mu is held.
func (s *store) reschedule(h *host, next int64) {
	h.next = next
	switch {
	case h.reported || h.state.Paused || next == never:
		if h.index >= 0 {
			heap.Remove(&s.due, h.index)
		}
		return
	case h.index >= 0:
		heap.Fix(&s.due, h.index)
	default:
		heap.Push(&s.due, h)
	}
	if h.index == 0 {
		select {
		case s.dueWake <- struct{}{}:
		default:
		}
	}
}

// dueBy notes that a host has something due at a time. store.mu is held.
func (s *store) dueBy(id, at int64) {
	if h := s.hosts[id]; h != nil && at < h.next {
		s.reschedule(h, at)
	}
}

// DueHosts implements [engine.Deliveries].
func (s *store) DueHosts(ctx context.Context, limit int) ([]engine.HostDue, error) {
	for {
		if err := s.usable(ctx); err != nil {
			return nil, err
		}
		var due []engine.HostDue
		now := time.Now().UnixNano()
		s.mu.Lock()
		for len(due) < limit && len(s.due) > 0 && s.due[0].next <= now {
			h := s.due[0]
			h.reported = true
			s.reschedule(h, h.next)
			due = append(due, engine.HostDue{HostState: h.state, Due: int(max(1, h.pending-h.inFlight)), Trusted: h.trusted > 0})
		}
		wait := time.Duration(never)
		if len(s.due) > 0 {
			wait = time.Duration(max(0, s.due[0].next-now))
		}
		s.mu.Unlock()
		if len(due) > 0 {
			return due, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-s.dueWake:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-s.stop:
			timer.Stop()
			return nil, fmt.Errorf("%w: it is closed", engine.ErrUnavailable)
		}
		timer.Stop()
	}
}

// SaveHosts implements [engine.Deliveries].
func (s *store) SaveHosts(ctx context.Context, states []engine.HostState) error {
	return s.update(ctx, func(t *tx) error {
		for _, state := range states {
			h, err := t.host(state.Host)
			if err != nil {
				return err
			}
			if h == nil {
				continue // it has no name
			}
			err = t.exec(`UPDATE host SET window = ?, average = ?, answered = ?, failures = ?, failing_since = ?, last_error = ?,
				last_status = ? WHERE id = ?`, state.Window, int64(state.Average), nanos(state.AnsweredAt), state.Failures,
				nanos(state.FailingSince), state.LastError, state.LastStatus, h.id)
			if err != nil {
				return err
			}
			t.after(func() {
				state.Paused = h.state.Paused
				h.state = state
			})
		}
		return nil
	})
}

// Pause implements [engine.Tasks].
func (s *store) Pause(ctx context.Context, target engine.Target, paused bool) error {
	return s.update(ctx, func(t *tx) error {
		if target.Queue != "" {
			return t.pauseQueue(target.Queue, paused)
		}
		h, err := t.host(target.Host)
		if err != nil {
			return err
		}
		if h == nil {
			return fmt.Errorf("%w: no host is named", engine.ErrNotFound)
		}
		if err := t.exec("UPDATE host SET paused = ? WHERE id = ?", paused, h.id); err != nil {
			return err
		}
		t.after(func() {
			h.state.Paused = paused
			if !paused {
				h.reported = false
				if h.pending > h.inFlight {
					s.reschedule(h, min(h.next, time.Now().UnixNano()))
					return
				}
			}
			s.reschedule(h, h.next)
		})
		return nil
	})
}

func (t *tx) pauseQueue(name string, paused bool) error {
	q, err := t.queue(name)
	if err != nil {
		return err
	}
	if err := t.exec("UPDATE queue SET paused = ? WHERE id = ?", paused, q.id); err != nil {
		return err
	}
	t.after(func() {
		q.paused = paused
		if !paused {
			q.ready(len(q.waiters))
		}
	})
	return nil
}

// Hosts implements [engine.Tasks].
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
	if err := s.usable(ctx); err != nil {
		return nil, "", err
	}
	order := func(a, b *host) int {
		return cmp.Or(cmp.Compare(b.pending, a.pending), cmp.Compare(a.state.Host, b.state.Host))
	}
	s.mu.Lock()
	var all []*host // the first of the page and one more: commits wait for this
	for _, h := range s.hosts {
		if h.pending > pending || h.pending == pending && h.state.Host <= name ||
			h.pending == 0 && h.state.Failures == 0 && !h.state.Paused {
			continue
		}
		if len(all) > limit && order(all[limit], h) < 0 {
			continue
		}
		if i, _ := slices.BinarySearchFunc(all, h, order); i <= limit {
			all = slices.Insert(all, i, h)
			all = all[:min(limit+1, len(all))]
		}
	}
	more := len(all) > limit
	all = all[:min(limit, len(all))]
	stats := make([]engine.HostStats, 0, len(all))
	ids := make([]int64, 0, len(all))
	for _, h := range all {
		stats = append(stats, engine.HostStats{HostState: h.state, Pending: h.pending, InFlight: h.inFlight})
		ids = append(ids, h.id)
	}
	s.mu.Unlock()
	err := s.read(ctx, func(c *conn) error {
		for i, id := range ids {
			at, ok, err := s.nextDue(c, id, stats[i].InFlight)
			if err != nil {
				return err
			}
			if ok {
				stats[i].Next = timeOf(at)
			}
		}
		return nil
	})
	next := engine.Cursor("")
	if more && len(stats) > 0 {
		last := stats[len(stats)-1]
		next = engine.Cursor(fmt.Sprintf("%d %s", last.Pending, last.Host))
	}
	return stats, next, err
}

// nextDue returns when the next delivery of a host is due that is not in flight.
func (s *store) nextDue(c *conn, id, inFlight int64) (at int64, ok bool, err error) {
	type due struct{ seq, at int64 }
	var list []due
	err = c.query("SELECT seq, at FROM task INDEXED BY task_due WHERE host = ? AND state = 2 ORDER BY at LIMIT ?", []any{id, inFlight + 1},
		func(stmt *sqlite3.Stmt) bool {
			list = append(list, due{stmt.ColumnInt64(0), stmt.ColumnInt64(1)})
			return true
		})
	if err != nil {
		return 0, false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range list {
		if s.inFlight[d.seq] == nil {
			return d.at, true, nil
		}
	}
	return 0, false, nil
}
