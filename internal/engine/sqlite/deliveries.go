package sqlite

import (
	"context"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const never = math.MaxInt64

const (
	// maxInMemory is how many deliveries are kept in memory. maxSmall is the largest result
	// kept with them, so that all take at most 24 MiB. Other deliveries wait in the
	// table.
	maxInMemory = 2048
	maxSmall    = 8 << 10
	// aheadBatch is how many deliveries of a host are read at once.
	aheadBatch = 64
)

// dueDelivery is a delivery in memory that is not in flight: a first delivery, or one that was
// read from the table to be taken next.
type dueDelivery struct {
	row
	rec    *task.Record
	result []byte // nil if it must be read
}

// delivery implements [engine.Delivery]. Its fencing token is the version that the task
// had when it was taken. Only memory has the information that it is in flight.
type delivery struct {
	*dueDelivery
	s      *store
	rec    task.Record // a copy that the caller changes
	ending sync.Mutex  // held by a step that ends it
}

// addDue adds a due delivery in memory. store.mu is held.
func (s *store) addDue(o *dueDelivery) {
	h := s.host(o.place.host)
	i := len(h.due)
	for i > 0 && h.due[i-1].at > o.at {
		i--
	}
	h.due = slices.Insert(h.due, i, o)
	s.inMemory++
	if !o.place.held {
		h.ahead++
	}
}

// dropDue removes deliveries of a host from memory. store.mu is held.
func (s *store) dropDue(name string, drop func(*dueDelivery) bool) {
	h := s.hosts[name]
	if h == nil {
		return
	}
	h.due = slices.DeleteFunc(h.due, func(o *dueDelivery) bool {
		if !drop(o) {
			return false
		}
		s.inMemory--
		if !o.place.held {
			h.ahead--
		}
		return true
	})
}

// Take implements [engine.Deliveries].
func (s *store) Take(ctx context.Context, name string, n int) (taken []engine.Delivery, err error) {
	if err := s.usable(ctx); err != nil || n <= 0 {
		return nil, err
	}
	if taken, ok := s.takeReady(name, n); ok {
		return taken, nil
	}
	err = s.read(ctx, func(c *conn) error {
		// Only memory has what is in flight. The lock must be held across the read.
		s.mu.Lock()
		defer s.mu.Unlock()
		h := s.host(name)
		s.readAhead(c, h, n)
		if c.err == nil {
			taken = s.takeFrom(h, n)
		}
		return nil
	})
	if len(taken) > 0 {
		return taken, nil // they are in flight
	}
	return nil, err
}

// takeReady takes deliveries of a host, unless the table must be read for them.
func (s *store) takeReady(name string, n int) (taken []engine.Delivery, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.host(name); !h.stored || h.ahead >= n || s.isPaused(h) {
		return s.takeFrom(h, n), true
	}
	return nil, false
}

// takeFrom takes deliveries of a host from memory. store.mu is held.
func (s *store) takeFrom(h *host, n int) (taken []engine.Delivery) {
	for len(taken) < n && !s.isPaused(h) && len(h.due) > 0 {
		o := h.due[0]
		h.due = h.due[1:]
		s.inMemory--
		if !o.place.held {
			h.ahead--
		}
		d := &delivery{s: s, dueDelivery: o, rec: *copyOf(o.rec)}
		s.inFlight[d.seq] = d
		h.inFlight++
		taken = append(taken, d)
	}
	if len(h.due) == 0 {
		h.due = nil
	}
	if len(taken) < n {
		h.reported = false
	}
	return taken
}

// readAhead reads the next due deliveries of a host from the table: at least n, if there
// are so many, and up to aheadBatch if there is room in memory. store.mu is held.
func (s *store) readAhead(c *conn, h *host, n int) {
	s.dropDue(h.name, func(o *dueDelivery) bool { return !o.place.held })
	now := time.Now().UnixNano()
	limit := max(n, min(aheadBatch, maxInMemory-s.inMemory))
	var rows []*row
	h.stored = false
	c.query(selectTask+" INDEXED BY task_due WHERE host = ? AND state = 2 AND holder IS NULL ORDER BY at, seq LIMIT ?",
		[]any{h.name, int64(limit) + h.inFlight + 1}, func(stmt *sqlite3.Stmt) bool {
			h.stored = true
			if s.inFlight[stmt.ColumnInt64(0)] != nil {
				return true
			}
			r := scanRow(stmt)
			if r.at > now {
				s.dueAt(h.name, r.at)
				return false
			}
			rows = append(rows, r)
			return len(rows) < limit
		})
	for _, r := range rows {
		rec, err := r.record()
		result := smallBody(c, r.seq, engine.ResultBody, r.result)
		if c.err != nil {
			break
		}
		if err != nil {
			s.log.Error("reading a delivery failed", zap.String("task_id", r.id), zap.Error(err))
			continue
		}
		r.doc = nil
		s.addDue(&dueDelivery{row: *r, rec: rec, result: result})
	}
	h.stored = h.stored || c.err != nil
}

// Record implements [engine.Delivery].
func (d *delivery) Record() *task.Record { return &d.rec }

// Result implements [engine.Delivery].
func (d *delivery) Result(ctx context.Context) (io.ReadCloser, error) {
	if d.result == nil {
		return d.s.Open(ctx, d.id, engine.ResultBody)
	}
	return engine.InMemory(d.result), nil
}

// Done implements [engine.Delivery].
func (d *delivery) Done(ctx context.Context) error {
	d.s.mu.Lock()
	keep := d.s.settings.KeepResults || d.place.queue != ""
	d.s.mu.Unlock()
	return d.end(ctx, done, time.Time{}, !keep)
}

// Retry implements [engine.Delivery].
func (d *delivery) Retry(ctx context.Context, at time.Time) error {
	return d.end(ctx, delivering, at, false)
}

// Dead implements [engine.Delivery].
func (d *delivery) Dead(ctx context.Context) error { return d.end(ctx, dead, time.Time{}, false) }

// end stores the outcome of an attempt. It is patient: the attempt's slot is free, and a
// crash at worst repeats the attempt.
func (d *delivery) end(ctx context.Context, state int, at time.Time, drop bool) error {
	rec := d.rec
	rec.NextAttemptAt = at
	doc, err := encode(&rec)
	if err != nil {
		return err
	}
	d.ending.Lock()
	defer d.ending.Unlock()
	return d.s.commitOp(ctx, op{patient: true, apply: func(t *tx) error {
		if t.s.flight(d.seq) != d {
			return engine.ErrLost
		}
		to := d.place
		to.state, to.held, to.size = state, false, size(doc, d.row.request, d.row.result)
		if drop = drop && d.row.result > 0; drop {
			to.size -= d.row.result
		}
		const update, where = "UPDATE task SET version = version + 1, at = ?1, doc = ?2", " WHERE seq = ?3 AND version = ?4"
		var err error
		switch {
		case state != delivering:
			err = t.step(&d.row, to, update+", holder = NULL, state = ?5, since = ?6"+where, opt(nanos(at)), doc, d.seq, d.version, state, t.now)
		case d.place.held:
			err = t.step(&d.row, to, update+", holder = NULL"+where, opt(nanos(at)), doc, d.seq, d.version)
		default: // four indexes depend on the holder, so it is set only if it changes
			err = t.step(&d.row, to, update+where, opt(nanos(at)), doc, d.seq, d.version)
		}
		if err != nil {
			return err
		}
		if drop {
			t.dropResult(&d.row)
		}
		t.after(func() {
			t.s.endFlight(d.seq)
			if state == delivering {
				t.s.dueAt(to.host, nanos(at))
			}
		})
		return nil
	}})
}

// dropResult removes the result of a task, if it has one.
func (t *tx) dropResult(r *row) {
	if r.result >= 0 {
		t.dropBody(r.seq, engine.ResultBody, r.result)
		t.exec("UPDATE task SET result = NULL WHERE seq = ?", r.seq)
	}
}

// flight returns the delivery of a task that is in flight; nil if there is none.
func (s *store) flight(seq int64) *delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inFlight[seq]
}

// endFlight removes a delivery from those in flight. store.mu is held.
func (s *store) endFlight(seq int64) {
	d := s.inFlight[seq]
	if d == nil {
		return
	}
	delete(s.inFlight, seq)
	if h := s.hosts[d.place.host]; h != nil {
		h.inFlight--
	}
}

// Release implements [engine.Delivery]. Taking a delivery stores nothing, so that there
// is nothing to undo.
func (d *delivery) Release(ctx context.Context) error {
	s := d.s
	if err := s.usable(ctx); err != nil {
		return err
	}
	d.ending.Lock()
	defer d.ending.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inFlight[d.seq] != d {
		return engine.ErrLost
	}
	h := s.host(d.place.host)
	s.endFlight(d.seq)
	h.reported = false
	if d.place.held {
		s.addDue(d.dueDelivery)
	} else {
		h.stored = true
	}
	s.dueNow(h)
	return nil
}
