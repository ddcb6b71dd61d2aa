package sqlite

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/ncruces/go-sqlite3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// fresh is a first delivery that is handed over in memory. It is stored like the
// others; this only saves reading it again.
type fresh struct {
	seq, version int64
	place        place
	rec          *task.Record
	doc          int64 // its document's size
	at           int64
	result       []byte // nil if it is to be read
	kept         int64  // the result's size; -1 if it is not kept
}

const (
	// maxFresh is how many first deliveries are kept in memory, and
	// maxFreshResult the largest result that is kept with them: 24 MiB at most.
	maxFresh       = 2048
	maxFreshResult = 8 << 10
)

// addFresh makes a delivery due that has just been stored. store.mu is held.
func (s *store) addFresh(v *verdict, p place, at int64) {
	if s.inFlight[v.seq] != nil {
		return // it was taken between the commit and now
	}
	h := s.hosts[p.host]
	if h == nil {
		return
	}
	if len(s.fresh) < maxFresh {
		f := &fresh{seq: v.seq, version: v.version + 1, place: p, rec: v.rec, doc: int64(len(v.doc)), at: at, kept: -1}
		f.rec.State, f.rec.Version = task.Delivering, uint64(f.version)
		if v.result != nil {
			f.kept = v.result.size
			if v.result.file == "" && v.result.size <= maxFreshResult {
				f.result = v.result.bytes
			}
		}
		s.fresh[v.seq] = f
		h.fresh = append(h.fresh, v.seq)
		h.freshN++
	}
	s.dueBy(p.host, at)
}

// dropFresh forgets a first delivery. store.mu is held.
func (s *store) dropFresh(seq int64) *fresh {
	f := s.fresh[seq]
	if f != nil {
		delete(s.fresh, seq)
		if h := s.hosts[f.place.host]; h != nil {
			h.freshN--
		}
	}
	return f
}

// delivery implements [engine.Delivery]. It is fenced by the version that the task
// had when it was taken; that it is in flight is known in memory only.
type delivery struct {
	fence
	s            *store
	seq, version int64
	place        place
	at           int64
	rec          *task.Record
	stored       *task.Record // what its document says, without its progress
	doc          int64        // the sizes of both
	progress     int64
	result       []byte // nil if it is to be read
	kept         int64  // the result's size; -1 if it is not kept
}

// Take implements [engine.Deliveries].
func (s *store) Take(ctx context.Context, name string, n int) ([]engine.Delivery, error) {
	if err := s.usable(ctx); err != nil {
		return nil, err
	}
	if n <= 0 {
		return nil, nil
	}
	s.mu.Lock()
	h := s.hostNames[name]
	if h == nil {
		s.mu.Unlock()
		return nil, nil
	}
	if h.pending-h.inFlight <= h.freshN || h.state.Paused {
		taken := s.takeFresh(h, n)
		s.mu.Unlock()
		return taken, nil
	}
	s.mu.Unlock()
	var taken []engine.Delivery
	err := s.withTaker(ctx, func(c *conn) (err error) {
		taken, err = s.takeStored(c, h, n)
		return err
	})
	return taken, err
}

// withTaker runs f with a connection that is not waited for.
func (s *store) withTaker(ctx context.Context, f func(*conn) error) error {
	if !s.shared {
		return s.explain(s.submit(context.WithoutCancel(ctx), &op{read: f}))
	}
	s.takeMu.Lock()
	defer s.takeMu.Unlock()
	if s.isClosing() {
		return engine.ErrUnavailable
	}
	return s.explain(f(s.taker))
}

// takeFresh takes deliveries of a host that has no others. store.mu is held.
func (s *store) takeFresh(h *host, n int) (taken []engine.Delivery) {
	if !h.state.Paused {
		for len(taken) < n && len(h.fresh) > 0 {
			seq := h.fresh[0]
			h.fresh = h.fresh[1:]
			if f := s.dropFresh(seq); f != nil {
				taken = append(taken, s.takeOne(h, f.delivery(s)))
			}
		}
		if len(h.fresh) == 0 {
			h.fresh = nil
		}
	}
	if len(taken) < n {
		h.reported = false
		if h.state.Paused {
			s.reschedule(h, h.next)
		} else {
			s.reschedule(h, never)
		}
	}
	return taken
}

func (f *fresh) delivery(s *store) *delivery {
	return &delivery{
		s: s, seq: f.seq, version: f.version, place: f.place, at: f.at,
		rec: copyOf(f.rec), stored: f.rec, doc: f.doc, result: f.result, kept: f.kept,
	}
}

func (s *store) takeOne(h *host, d *delivery) *delivery {
	s.inFlight[d.seq] = d
	h.inFlight++
	return d
}

// takeStored takes deliveries of a host, in the order of their due time. What is
// in flight is known in memory alone: nothing may change there meanwhile.
func (s *store) takeStored(c *conn, h *host, n int) (taken []engine.Delivery, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.state.Paused {
		return s.takeFresh(h, n), nil
	}
	now := time.Now().UnixNano()
	next := int64(never)
	var seqs []int64
	// The one after the last tells when there is more.
	err = c.query("SELECT seq, at FROM task INDEXED BY task_due WHERE host = ? AND state = 2 ORDER BY at, trusted, seq LIMIT ?",
		[]any{h.id, int64(n) + h.inFlight + 1}, func(stmt *sqlite3.Stmt) bool {
			seq, at := stmt.ColumnInt64(0), stmt.ColumnInt64(1)
			if s.inFlight[seq] != nil {
				return true
			}
			if at > now || len(seqs) == n {
				next = at
				return false
			}
			seqs = append(seqs, seq)
			return true
		})
	if err != nil {
		return nil, err
	}
	for _, seq := range seqs {
		d, err := s.load1(c, seq)
		if err != nil {
			s.log.Error("reading a delivery failed", zap.Int64("seq", seq), zap.Error(err))
			continue
		}
		if d != nil {
			taken = append(taken, s.takeOne(h, d))
		}
	}
	if len(taken) < n {
		h.reported = false
	}
	s.reschedule(h, next)
	return taken, nil
}

// load1 returns a delivery, from memory if it is there; nil if it is gone.
func (s *store) load1(c *conn, seq int64) (*delivery, error) {
	if f := s.dropFresh(seq); f != nil {
		return f.delivery(s), nil
	}
	var r *row
	err := c.query(selectTask+" WHERE t.seq = ? AND t.state = 2", []any{seq}, func(stmt *sqlite3.Stmt) bool {
		r = scanRow(stmt)
		return false
	})
	if err != nil || r == nil {
		return nil, err
	}
	rec, err := r.record()
	if err != nil {
		return nil, err
	}
	stored, err := decode(r.doc)
	return &delivery{
		s: s, seq: seq, version: r.version, place: r.place, at: r.at,
		rec: rec, stored: stored, doc: int64(len(r.doc)), progress: int64(len(r.progress)), kept: r.result,
	}, err
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
	e := &ending{delivery: d, state: state, at: nanos(at), drop: drop && d.kept > 0, size: d.place.size - d.progress}
	line, err := encodeChange(d.stored, &rec)
	if err == nil && (line == nil || int(d.doc)+len(line) > task.MaxEncoded) {
		line = nil
		e.doc, err = encode(&rec)
		e.size += int64(len(e.doc)) - d.doc
	}
	if err != nil {
		return err
	}
	e.progress, e.size = line, e.size+int64(len(line))
	return d.step(ctx, d.s, kind, func(t *tx) error { return t.endDelivery(e) })
}

// ending is what becomes of a delivery.
type ending struct {
	*delivery
	state    int
	at       int64
	doc      []byte // nil if only its progress changes
	progress []byte
	size     int64
	drop     bool // its result goes
}

// endDelivery stores what became of an attempt.
func (t *tx) endDelivery(d *ending) error {
	t.s.mu.Lock()
	held := t.s.inFlight[d.seq] == d.delivery
	t.s.mu.Unlock()
	if !held {
		return engine.ErrLost
	}
	to := d.place
	to.state, to.size = d.state, d.size
	since := t.now
	if d.state == delivering {
		since = 0
	}
	var progress any
	if d.progress != nil {
		progress = d.progress
	}
	err := t.exec(`UPDATE task SET state = ?, version = version + 1, at = ?, since = coalesce(?, since), size = ?, progress = ?
		WHERE seq = ? AND version = ? AND state = 2`, d.state, null(d.at), null(since), d.size, progress, d.seq, d.version)
	if err == nil {
		err = t.fenced()
	}
	if err == nil && d.doc != nil {
		err = t.exec("UPDATE record SET doc = ? WHERE seq = ?", d.doc, d.seq)
	}
	if err == nil && d.drop {
		err = t.dropResult(d.seq, &to, d.kept)
	}
	if err != nil {
		return err
	}
	t.move(d.rec.ID, d.place, to)
	t.after(func() {
		t.s.land(d.seq)
		if d.state == delivering {
			t.s.dueBy(d.place.host, d.at)
		}
	})
	return nil
}

// dropResult removes a result of which size bytes are kept.
func (t *tx) dropResult(seq int64, p *place, size int64) error {
	if err := t.dropBody(seq, engine.ResultBody); err != nil {
		return err
	}
	p.size -= size
	return t.exec("UPDATE task SET result = NULL, size = ? WHERE seq = ?", p.size, seq)
}

// land forgets that a delivery is in flight. store.mu is held.
func (s *store) land(seq int64) {
	d := s.inFlight[seq]
	if d == nil {
		return
	}
	delete(s.inFlight, seq)
	if h := s.hosts[d.place.host]; h != nil {
		h.inFlight--
	}
}

// Release implements [engine.Delivery]. Nothing was stored that it would undo.
func (d *delivery) Release(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.pending; p != nil {
		select {
		case <-p.done:
		case <-ctx.Done():
			return ctx.Err()
		}
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
	s.land(d.seq)
	if h := s.hosts[d.place.host]; h != nil {
		h.reported = false
		s.reschedule(h, min(h.next, d.at))
	}
	return nil
}
