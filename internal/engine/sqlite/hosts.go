package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// host is the in-memory state of a host, guarded by store.mu. The table may have
// deliveries to a million hosts: when there are more than maxHosts in memory, those that
// need not be there are dropped.
type host struct {
	name    string
	trusted bool              // the table has it as trusted
	isRead  bool              // trusted is known
	state   *engine.HostState // as it was saved last; nil if it must be read

	stored   bool           // the table may have deliveries that memory does not have
	due      []*dueDelivery // deliveries in memory, the next one first
	ahead    int            // how many of them are in the table too
	inFlight int64
	reported bool // DueHosts has reported it, and no Take has returned fewer than asked for since
	ready    bool // it is in store.ready
}

// maxHosts is how many hosts without deliveries in memory may be kept there. maxReady
// is how many hosts store.ready may list.
const (
	maxHosts = 4096
	maxReady = 4096
)

// host returns a host. store.mu is held.
func (s *store) host(name string) *host {
	h := s.hosts[name]
	if h == nil {
		h = &host{name: name, stored: true}
		s.hosts[name] = h
	}
	return h
}

func (s *store) isPaused(h *host) bool { return s.paused[engine.Target{Host: h.name}] }

// dropHosts drops hosts that need not be in memory if there are too many. A dropped
// host that was reported is reported again if it has deliveries due. store.mu is held.
func (s *store) dropHosts() {
	if len(s.hosts) < s.hostsAt {
		return
	}
	for name, h := range s.hosts {
		if len(h.due) == 0 && h.inFlight == 0 && !h.ready {
			delete(s.hosts, name)
		}
	}
	s.hostsAt = 2*len(s.hosts) + maxHosts
}

// passed is the position up to which the index of due deliveries has been read.
type passed struct{ at, seq int64 }

// dueNow schedules a report of a host. store.mu is held.
func (s *store) dueNow(h *host) {
	if h.reported || h.ready || s.isPaused(h) {
		return
	}
	h.ready = true
	s.ready = append(s.ready, h)
	wake(s.dueWake)
}

// dueAt records that the table has a delivery of a host that becomes due at a time.
// store.mu is held.
func (s *store) dueAt(name string, at int64) {
	if at <= s.passed.at {
		s.passed = passed{at: at}
	}
	if h := s.hosts[name]; h != nil {
		h.stored = true
		if at <= time.Now().UnixNano() && len(s.ready) < maxReady {
			s.dueNow(h)
		}
	}
	if at < s.nextDue { // always with a wake-up: a later dueAt relies on it
		s.nextDue = at
		wake(s.dueWake)
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
		reports, wait := s.dueInMemory(limit)
		var err error
		switch {
		case len(reports) > 0:
		case wait > 0:
			err = s.wait(ctx, s.dueWake, wait)
		default:
			reports, err = s.dueInTable(ctx, limit)
		}
		if len(reports) > 0 {
			return reports, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// dueInMemory reports hosts of the list, up to the first one for which the table must be
// read. Most first deliveries need no read. If there are no reports, wait is how long to
// wait for more; 0 if the table must be read now.
func (s *store) dueInMemory(limit int) (reports []engine.HostDue, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UnixNano()
	if s.nextDue <= now {
		return nil, 0
	}
	for len(reports) < limit {
		h := s.popReady(true)
		if h == nil {
			break
		}
		reports = append(reports, engine.HostDue{HostState: *h.state, Due: len(h.due), Trusted: h.trusted})
	}
	if len(s.ready) > 0 {
		return reports, 0
	}
	return reports, time.Duration(min(s.nextDue-now, int64(time.Hour)))
}

// dueInTable lists hosts whose deliveries in the table have become due, and reports hosts of
// the list.
func (s *store) dueInTable(ctx context.Context, limit int) (reports []engine.HostDue, err error) {
	err = s.read(ctx, func(c *conn) error {
		s.scanDue(c, limit)
		for len(reports) < limit && c.err == nil {
			s.mu.Lock()
			h := s.popReady(false)
			s.mu.Unlock()
			if h == nil {
				break
			}
			if d := s.report(c, h); d.Due > 0 {
				reports = append(reports, d)
			}
		}
		return nil
	})
	return reports, err
}

// popReady returns the next host to be reported. It returns nil if there is none, or if
// inMemory is set and the table must be read for its report. store.mu is held.
func (s *store) popReady(inMemory bool) *host {
	for len(s.ready) > 0 {
		h := s.ready[0]
		due := !s.isPaused(h) && (h.stored || len(h.due) > 0)
		if due && inMemory && (h.stored || h.state == nil) {
			return nil
		}
		s.ready = s.ready[1:]
		h.ready = false
		if due {
			h.reported = true
			return h
		}
	}
	return nil
}

// scanBatch is how much of the index is read at once. Commits wait for the read.
const scanBatch = 500

// scanDue lists the hosts whose deliveries have become due since the last call, from one
// batch of the index, if the list has room. It is the first query of its read, and holds
// store.mu: what it does not see is published later, and dueAt makes the next call read it.
func (s *store) scanDue(c *conn, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) >= limit {
		return
	}
	rows, now, next := 0, time.Now().UnixNano(), int64(never)
	c.query(`SELECT at, seq, host FROM task INDEXED BY task_at WHERE state = 2 AND holder IS NULL AND (at, seq) > (?, ?)
		ORDER BY at, seq`, []any{s.passed.at, s.passed.seq}, func(r *sqlite3.Stmt) bool {
		at, seq := r.ColumnInt64(0), r.ColumnInt64(1)
		next = at
		if at > now || rows == scanBatch {
			return false
		}
		h := s.host(r.ColumnText(2))
		if !h.ready && len(s.ready) >= limit {
			return false
		}
		if s.inFlight[seq] == nil {
			h.stored = true
			s.dueNow(h)
		}
		s.passed, next = passed{at, seq}, never
		rows++
		return true
	})
	if c.err == nil {
		s.nextDue = next
	}
	s.dropHosts()
}

// maxDue is how many deliveries of a host are counted for a report.
const maxDue = 1000

// report returns what DueHosts reports about a host. Due is 0 if nothing is due.
func (s *store) report(c *conn, h *host) engine.HostDue {
	d := engine.HostDue{HostState: engine.HostState{Host: h.name}}
	c.query(selectHosts+" WHERE name = ?", []any{h.name}, func(r *sqlite3.Stmt) bool {
		d.HostState, d.Trusted = scanHost(r), r.ColumnBool(9)
		return false
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	h.trusted, h.isRead = h.trusted || d.Trusted, h.isRead || c.err == nil
	d.Due, d.Trusted = len(h.due)-h.ahead, h.trusted
	if h.stored {
		n, _ := c.number(`SELECT count(*) FROM (SELECT 1 FROM task INDEXED BY task_due
			WHERE host = ? AND state = 2 AND holder IS NULL AND at <= ? LIMIT ?)`, h.name, time.Now().UnixNano(), maxDue)
		d.Due += int(min(n, max(1, n-h.inFlight))) // some of them are in flight
	}
	h.reported = d.Due > 0 && c.err == nil
	if c.err != nil {
		d.Due = 0
		s.dueNow(h)
	}
	return d
}

// hostColumns are what the table keeps about a host, without its name and its count.
const hostColumns = "window, average, answered, failures, failing_since, last_error, last_status, paused, trusted"

// selectHosts selects the columns that scanHost reads, trusted and waiting.
const selectHosts = "SELECT name, " + hostColumns + ", waiting FROM host"

func scanHost(s *sqlite3.Stmt) engine.HostState {
	return engine.HostState{
		Host: s.ColumnText(0), Window: s.ColumnInt(1), Average: time.Duration(s.ColumnInt64(2)), AnsweredAt: timeOf(s.ColumnInt64(3)),
		Failures: s.ColumnInt(4), FailingSince: timeOf(s.ColumnInt64(5)), LastError: s.ColumnText(6), LastStatus: s.ColumnInt(7),
		Paused: s.ColumnBool(8),
	}
}

// SaveHosts implements [engine.Deliveries].
func (s *store) SaveHosts(ctx context.Context, states []engine.HostState) error {
	return s.update(ctx, func(t *tx) error {
		t.after(func() { s.hostsSaved(states) })
		for _, h := range states {
			if h.Host == "" {
				continue
			}
			t.exec(`INSERT INTO host(name, window, average, answered, failures, failing_since, last_error, last_status)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(name) DO UPDATE SET window = excluded.window, average = excluded.average,
				answered = excluded.answered, failures = excluded.failures, failing_since = excluded.failing_since,
				last_error = excluded.last_error, last_status = excluded.last_status`, h.Host, h.Window, int64(h.Average),
				nanos(h.AnsweredAt), h.Failures, nanos(h.FailingSince), h.LastError, h.LastStatus)
		}
		return nil
	})
}

// hostsSaved keeps the states of hosts whose row was read. Nothing else may: a read may be
// older than the last save. store.mu is held.
func (s *store) hostsSaved(states []engine.HostState) {
	for _, state := range states {
		if h := s.hosts[state.Host]; h != nil && h.isRead {
			state.Paused = false // a paused host is not reported
			h.state = &state
		}
	}
}

// Pause implements [engine.Tasks].
func (s *store) Pause(ctx context.Context, target engine.Target, paused bool) error {
	table, name := "queue", target.Queue
	if name == "" {
		table, name = "host", target.Host
	}
	if name == "" {
		return fmt.Errorf("%w: no host is named", engine.ErrNotFound)
	}
	return s.update(ctx, func(t *tx) error {
		t.after(func() {
			if paused {
				s.paused[target] = true
				return
			}
			delete(s.paused, target)
			if target.Queue != "" {
				s.wakeWorker(name)
				return
			}
			h := s.host(name)
			h.reported, h.state = false, nil
			s.dueNow(h)
		})
		t.exec("INSERT INTO "+table+"(name, paused) VALUES (?1, ?2) ON CONFLICT(name) DO UPDATE SET paused = ?2", name, paused)
		if table == "host" && !paused {
			t.exec("UPDATE host SET failures = 0, failing_since = 0 WHERE name = ?", name)
		}
		return nil
	})
}
