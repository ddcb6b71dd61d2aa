package sqlite

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// host is the in-memory state of a host, guarded by store.mu. The table may have a
// million hosts: when there are more than maxHosts in memory, those that need not be
// there are dropped.
type host struct {
	id      int64
	state   engine.HostState
	trusted bool

	stored   bool    // the table may have deliveries that memory does not have
	fresh    []*owed // first deliveries in memory, oldest first
	ahead    []*owed // deliveries of the table that were read to be taken next
	held     int64   // number of first deliveries in memory, including those in flight
	inFlight int64
	reported bool // DueHosts has reported it, and no Take has returned fewer than asked for since
	ready    bool // it is in store.ready
	users    int  // transactions that have a pointer to it
}

// maxHosts is how many hosts without deliveries in memory may be kept there. maxReady
// is how many hosts store.ready may list.
const (
	maxHosts = 4096
	maxReady = 4096
)

// The columns and the query that scanHost reads.
const (
	hostColumns = "id, name, paused, trusted, waiting, window, average, answered, failures, failing_since, last_error, last_status"
	selectHosts = "SELECT " + hostColumns + " FROM host"
)

func scanHost(s *sqlite3.Stmt) *host {
	return &host{id: s.ColumnInt64(0), trusted: s.ColumnBool(3), stored: s.ColumnInt64(4) > 0, state: engine.HostState{
		Host: s.ColumnText(1), Paused: s.ColumnBool(2), Window: s.ColumnInt(5), Average: time.Duration(s.ColumnInt64(6)),
		AnsweredAt: timeOf(s.ColumnInt64(7)), Failures: s.ColumnInt(8), FailingSince: timeOf(s.ColumnInt64(9)),
		LastError: s.ColumnText(10), LastStatus: s.ColumnInt(11),
	}}
}

// findHost returns a host of the table. It returns nil if there is none.
func findHost(c *conn, where string, arg any) (h *host, err error) {
	err = c.query(selectHosts+where, []any{arg}, func(s *sqlite3.Stmt) bool {
		h = scanHost(s)
		return false
	})
	return h, err
}

// keep adds a host to memory. store.mu is held.
func (s *store) keep(h *host) { s.hosts[h.id], s.hostNames[h.state.Host] = h, h }

func (s *store) drop(h *host) {
	delete(s.hosts, h.id)
	delete(s.hostNames, h.state.Host)
}

// dropHosts drops hosts that need not be in memory if there are too many. A dropped
// host that was reported is reported again if it has deliveries due. store.mu is held.
func (s *store) dropHosts() {
	if len(s.hosts) < s.hostsAt {
		return
	}
	for _, h := range s.hosts {
		if h.held == 0 && h.inFlight == 0 && len(h.ahead) == 0 && !h.ready && h.users == 0 {
			s.drop(h)
		}
	}
	s.hostsAt = 2*len(s.hosts) + maxHosts
}

// passed is the position up to which the index of due deliveries has been read.
type passed struct{ at, seq int64 }

// dueNow schedules a report of a host. store.mu is held.
func (s *store) dueNow(h *host) {
	if h.reported || h.ready || h.state.Paused {
		return
	}
	h.ready = true
	s.ready = append(s.ready, h)
	s.wakeDue()
}

// dueAt records that the table has a delivery of a host that becomes due at a time.
// store.mu is held.
func (s *store) dueAt(id, at int64) {
	h := s.hosts[id]
	if h != nil {
		h.stored = true
		if at <= time.Now().UnixNano() && len(s.ready) < maxReady {
			s.dueNow(h)
			return
		}
	}
	if at <= s.passed.at {
		s.passed = passed{at: at}
	}
	if at < s.nextDue {
		s.nextDue = at
		s.wakeDue()
	}
}

func (s *store) wakeDue() {
	select {
	case s.dueWake <- struct{}{}:
	default:
	}
}

// DueHosts implements [engine.Deliveries]. Hosts whose first deliveries are in memory
// are in a list. The other hosts are found in the order in which their deliveries in
// the table become due: that index is read once from start to end as time passes.
func (s *store) DueHosts(ctx context.Context, limit int) ([]engine.HostDue, error) {
	for {
		if err := s.usable(ctx); err != nil {
			return nil, err
		}
		var due []*dueHost
		s.mu.Lock()
		for len(due) < limit && len(s.ready) > 0 {
			h := s.ready[0]
			s.ready = s.ready[1:]
			h.ready = false
			if !h.reported && !h.state.Paused && (h.stored || len(h.fresh) > 0) {
				h.reported = true
				due = append(due, &dueHost{host: h})
			}
		}
		s.mu.Unlock()
		wait := time.Duration(0)
		var reports []engine.HostDue
		err := s.withTaker(ctx, func(c *conn) (err error) {
			due, wait, err = s.scanDue(c, due, limit)
			if err == nil {
				reports, err = s.report(c, due)
			}
			return err
		})
		if err != nil {
			s.mu.Lock()
			for _, h := range due {
				h.reported = false
				s.dueNow(h.host)
			}
			s.mu.Unlock()
			return nil, err
		}
		if len(reports) > 0 {
			return reports, nil
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
			return nil, errClosed
		}
		timer.Stop()
	}
}

// dueHost is a host that is being reported. It has the number of its deliveries that
// were seen in the table, or 0 if they were not counted.
type dueHost struct {
	*host
	seen int
}

// scanBatch is how much of the index is read at once. Commits wait for the read.
const scanBatch = 500

// The queries for the next due delivery after the last one: at the same time, or later.
const (
	dueWith  = "SELECT at, host, seq FROM task INDEXED BY task_at WHERE state = 2 AND holder IS NULL AND at = ? AND seq > ? ORDER BY seq LIMIT ?"
	dueAfter = "SELECT at, host, seq FROM task INDEXED BY task_at WHERE state = 2 AND holder IS NULL AND at > ? ORDER BY at, seq LIMIT ?"
)

// scanDue appends the hosts whose deliveries have become due since the last call to
// due. It stops once it has found some. wait is how long to wait for more.
func (s *store) scanDue(c *conn, due []*dueHost, limit int) (_ []*dueHost, wait time.Duration, err error) {
	for len(due) < limit && err == nil {
		s.mu.Lock()
		d := &dueScan{s: s, c: c, due: due, limit: limit, now: time.Now().UnixNano(), seen: map[int64]*dueHost{}}
		s.nextDue = never
		err = c.query(dueWith, []any{s.passed.at, s.passed.seq, scanBatch}, d.row)
		if err == nil && d.rows < scanBatch && !d.full {
			err = c.query(dueAfter, []any{s.passed.at, scanBatch}, d.row)
		}
		err = cmp.Or(err, d.err)
		due, wait = d.due, time.Duration(max(0, min(s.nextDue-d.now, int64(time.Hour))))
		s.dropHosts()
		s.mu.Unlock()
		if d.rows < scanBatch || len(d.seen) > 0 {
			break
		}
	}
	return due, wait, err
}

// dueScan is one scan of the index. store.mu is held.
type dueScan struct {
	s     *store
	c     *conn
	due   []*dueHost
	limit int
	now   int64
	rows  int
	full  bool               // the limit is reached
	seen  map[int64]*dueHost // those that the scan has added
	err   error
}

func (d *dueScan) row(r *sqlite3.Stmt) bool {
	s, at, id, seq := d.s, r.ColumnInt64(0), r.ColumnInt64(1), r.ColumnInt64(2)
	if at > d.now {
		s.nextDue = at
		return false
	}
	h := s.hosts[id]
	if known := d.seen[id]; known != nil {
		known.seen++
	} else if h == nil || !h.reported && !h.state.Paused && s.inFlight[seq] == nil {
		if d.full = len(d.due) >= d.limit; d.full {
			return false
		}
		if h == nil {
			if h, d.err = findHost(d.c, " WHERE id = ?", id); d.err != nil {
				return false
			}
			if h == nil {
				h = &host{id: id, state: engine.HostState{Paused: true}} // it cannot be taken
			} else {
				s.keep(h)
			}
		}
		if !h.state.Paused {
			h.stored, h.reported = true, true
			d.seen[id] = &dueHost{h, 1}
			d.due = append(d.due, d.seen[id])
		}
	}
	s.passed = passed{at, seq}
	d.rows++
	return true
}

// maxDue is how many deliveries of a host are counted for a report.
const maxDue = 1000

// report returns the result of DueHosts for the given hosts.
func (s *store) report(c *conn, due []*dueHost) (reports []engine.HostDue, err error) {
	now := time.Now().UnixNano()
	for _, h := range due {
		s.mu.Lock()
		d := engine.HostDue{HostState: h.state, Due: h.seen + len(h.fresh), Trusted: h.trusted}
		stored, inFlight := h.stored, h.inFlight
		s.mu.Unlock()
		if stored && h.seen == 0 {
			n, _, err := c.number(`SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_due
				WHERE host = ? AND state = 2 AND holder IS NULL AND at <= ? LIMIT ?)`, h.id, now, maxDue)
			if err != nil {
				return nil, err
			}
			d.Due += int(max(0, n-inFlight))
		}
		d.Due = max(1, d.Due)
		reports = append(reports, d)
	}
	return reports, nil
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
			if !paused && (h.stored || len(h.fresh) > 0) {
				h.reported = false
				s.dueNow(h)
			}
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
