package sqlite

import (
	"bytes"
	"context"
	"io"
	"math"
	"slices"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const never = math.MaxInt64

const (
	// maxFresh is how many deliveries are kept in memory. maxSmall is the largest result
	// kept with them, so that all take at most 24 MiB. Other deliveries wait in the
	// table.
	maxFresh = 2048
	maxSmall = 8 << 10
)

// owed is a delivery that is not in flight. It is in memory or was just read.
type owed struct {
	seq, version int64
	place        place
	at           int64
	rec          *task.Record
	result       []byte // nil if it must be read
	kept         int64  // the result's size; -1 if it is not kept
}

// delivery implements [engine.Delivery]. Its fencing token is the version that the task
// had when it was taken. Only memory has the information that it is in flight.
type delivery struct {
	fence
	*owed
	s   *store
	rec *task.Record // a copy that the caller changes
}

// addFresh adds a due delivery in memory. store.mu is held.
func (s *store) addFresh(h *host, o *owed) {
	i := len(h.fresh)
	for i > 0 && h.fresh[i-1].at > o.at {
		i--
	}
	h.fresh = slices.Insert(h.fresh, i, o)
	s.freshN++
	s.dueNow(h)
}

// dropFresh removes a delivery that is not in flight from memory. store.mu is held.
func (s *store) dropFresh(p place, seq int64) {
	if h := s.hosts[p.host]; h != nil && p.held {
		n := len(h.fresh)
		h.fresh = slices.DeleteFunc(h.fresh, func(o *owed) bool { return o.seq == seq })
		s.freshN -= n - len(h.fresh)
	}
}

// Take implements [engine.Deliveries].
func (s *store) Take(ctx context.Context, name string, n int) (taken []engine.Delivery, err error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	if n <= 0 {
		return nil, nil
	}
	s.mu.Lock()
	if h := s.hostNames[name]; h != nil && (!h.stored || h.state.Paused || len(h.ahead) >= n) {
		taken := s.takeFrom(h, n)
		s.mu.Unlock()
		return taken, nil
	}
	s.mu.Unlock()
	err = s.withTaker(ctx, func(c *conn) error {
		// Only memory has what is in flight. The lock must be held across the read.
		s.mu.Lock()
		defer s.mu.Unlock()
		h := s.hostNames[name]
		if h == nil {
			if h, err = findHost(c, " WHERE name = ?", name); err != nil || h == nil {
				return err
			}
			s.keep(h)
		}
		err := s.readAhead(c, h, n)
		taken = s.takeFrom(h, n)
		return err
	})
	return taken, err
}

// withTaker runs f with a connection for Take, which does not wait for other readers.
func (s *store) withTaker(ctx context.Context, f func(*conn) error) error {
	if !s.shared {
		return s.explain(s.submit(context.WithoutCancel(ctx), &op{read: f}))
	}
	s.takeMu.Lock()
	defer s.takeMu.Unlock()
	if s.isClosing() {
		return errClosed
	}
	return s.explain(s.taker.snapshot(f))
}

// takeFrom takes deliveries of a host from memory, in order of their due time. store.mu
// is held.
func (s *store) takeFrom(h *host, n int) (taken []engine.Delivery) {
	for len(taken) < n && !h.state.Paused && len(h.fresh)+len(h.ahead) > 0 {
		from, count := &h.ahead, &s.aheadN
		if len(h.ahead) == 0 || len(h.fresh) > 0 && h.fresh[0].at < h.ahead[0].at {
			from, count = &h.fresh, &s.freshN
		}
		*count--
		d := &delivery{s: s, owed: (*from)[0], rec: copyOf((*from)[0].rec)}
		*from = (*from)[1:]
		s.inFlight[d.seq] = d
		h.inFlight++
		taken = append(taken, d)
	}
	if len(h.fresh) == 0 {
		h.fresh = nil
	}
	if len(h.ahead) == 0 {
		h.ahead = nil
	}
	if len(taken) < n {
		h.reported = false
	}
	return taken
}

// aheadBatch is how many deliveries of a host are read at once.
const aheadBatch = 64

// readAhead reads the next due deliveries of a host from the table: at least n, if there
// are so many, and up to aheadBatch if there is room in memory. store.mu is held.
func (s *store) readAhead(c *conn, h *host, n int) error {
	if h.state.Paused {
		return nil
	}
	s.dropAhead(h.id)
	limit := max(n, min(aheadBatch, maxFresh-s.freshN-s.aheadN))
	now := time.Now().UnixNano()
	var seqs []int64
	h.stored = false
	err := c.query(`SELECT seq, at FROM task INDEXED BY task_due WHERE host = ? AND state = 2 AND holder IS NULL
		ORDER BY at, seq LIMIT ?`, []any{h.id, int64(limit) + h.inFlight + 1}, func(stmt *sqlite3.Stmt) bool {
		h.stored = true
		seq, at := stmt.ColumnInt64(0), stmt.ColumnInt64(1)
		if s.inFlight[seq] != nil {
			return true
		}
		if at > now {
			s.dueAt(h.id, at)
		} else {
			seqs = append(seqs, seq)
		}
		return at <= now && len(seqs) < limit
	})
	if err != nil {
		h.stored = true
		return err
	}
	for _, seq := range seqs {
		o, err := readOwed(c, seq)
		if err != nil {
			s.log.Error("reading a delivery failed", zap.Int64("seq", seq), zap.Error(s.explain(err)))
		}
		if o != nil {
			h.ahead = append(h.ahead, o)
			s.aheadN++
		}
	}
	return nil
}

// readOwed reads a delivery of the table, with its result if that is small. It returns
// nil if the table does not have it.
func readOwed(c *conn, seq int64) (*owed, error) {
	r, err := one(c, " WHERE seq = ? AND state = 2 AND holder IS NULL", seq)
	if err != nil || r == nil {
		return nil, err
	}
	rec, err := r.record()
	if err != nil {
		return nil, err
	}
	o := &owed{seq: seq, version: r.version, place: r.place, at: r.at, rec: rec, kept: r.result}
	o.result, err = smallBody(c, seq, engine.ResultBody, r.result)
	return o, err
}

// dropAhead forgets what was read ahead of a host, because the table has changed.
// store.mu is held.
func (s *store) dropAhead(id int64) {
	if h := s.hosts[id]; h != nil {
		s.aheadN -= len(h.ahead)
		h.ahead = nil
	}
}

// Record implements [engine.Delivery].
func (d *delivery) Record() *task.Record { return d.rec }

// Result implements [engine.Delivery].
func (d *delivery) Result(ctx context.Context) (io.ReadCloser, error) {
	if d.kept < 0 {
		return nil, engine.ErrNotFound
	}
	if d.result != nil {
		return io.NopCloser(bytes.NewReader(d.result)), nil
	}
	return d.s.Open(ctx, d.rec.ID, engine.ResultBody)
}

// Done implements [engine.Delivery].
func (d *delivery) Done(ctx context.Context) error {
	d.s.mu.Lock()
	keep := d.s.settings.KeepResults || d.place.queue != 0
	d.s.mu.Unlock()
	return d.end(ctx, "done", done, time.Time{}, !keep)
}

// Retry implements [engine.Delivery].
func (d *delivery) Retry(ctx context.Context, at time.Time) error {
	return d.end(ctx, "retry", delivering, at, false)
}

// Dead implements [engine.Delivery].
func (d *delivery) Dead(ctx context.Context) error {
	return d.end(ctx, "dead", dead, time.Time{}, false)
}

func (d *delivery) end(ctx context.Context, kind string, state int, at time.Time, drop bool) error {
	rec := *d.rec
	rec.NextAttemptAt = at
	doc, err := encode(&rec)
	if err != nil {
		return err
	}
	drop = drop && d.kept > 0
	return d.step(ctx, d.s, kind, func(t *tx) error { return t.endDelivery(d, state, nanos(at), doc, drop) })
}

// endDelivery stores the outcome of an attempt.
func (t *tx) endDelivery(d *delivery, state int, at int64, doc []byte, drop bool) error {
	t.s.mu.Lock()
	held := t.s.inFlight[d.seq] == d
	t.s.mu.Unlock()
	if !held {
		return engine.ErrLost
	}
	to := d.place
	to.state, to.held, to.size = state, false, int64(len(doc))+max(0, d.kept)
	var err error
	switch {
	case state == delivering && !d.place.held: // the changed columns are in few indexes
		err = t.exec("UPDATE task SET version = version + 1, at = ?, doc = ? WHERE seq = ? AND version = ?", at, doc, d.seq, d.version)
	case state == delivering:
		err = t.exec("UPDATE task SET version = version + 1, holder = NULL, at = ?, doc = ? WHERE seq = ? AND version = ?",
			at, doc, d.seq, d.version)
	default:
		err = t.exec("UPDATE task SET state = ?, version = version + 1, holder = NULL, at = NULL, since = ?, doc = ? WHERE seq = ? AND version = ?",
			state, t.now, doc, d.seq, d.version)
	}
	if err == nil {
		err = t.fenced()
	}
	if err == nil && drop {
		err = t.dropResult(d.seq, &to, d.kept)
	}
	if err != nil {
		return err
	}
	t.move(d.rec.ID, d.place, to)
	t.after(func() {
		t.s.endFlight(d.seq)
		if state == delivering {
			t.s.dueAt(d.place.host, at)
		}
	})
	return nil
}

// dropResult removes a result of size bytes.
func (t *tx) dropResult(seq int64, p *place, size int64) error {
	if err := t.dropBody(seq, engine.ResultBody); err != nil {
		return err
	}
	p.size -= size
	return t.exec("UPDATE task SET result = NULL WHERE seq = ?", seq)
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
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.learn(ctx); err != nil {
		return err
	}
	s := d.s
	if err := s.usable(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inFlight[d.seq] != d {
		return engine.ErrLost
	}
	h := s.hosts[d.place.host]
	s.endFlight(d.seq)
	h.reported = false
	if d.place.held {
		s.addFresh(h, d.owed)
	} else {
		h.stored = true
		s.dueNow(h)
	}
	return nil
}
