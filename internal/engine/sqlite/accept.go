package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// errIDInUse is returned for a new task whose ID exists already.
var errIDInUse = errors.New("the task ID is in use")

// insert stores a new task.
func (t *tx) insert(rec *task.Record, doc []byte, state int, at, since int64, request, result *body) (*row, error) {
	t.trust(rec)
	r := &row{id: rec.ID, version: 1, starts: int64(rec.Starts), at: at, since: since, request: request.kept(), result: result.kept()}
	r.place = place{
		state: state, held: state == running, queue: rec.Queue, host: hostOf(rec), domain: rec.CallbackDomain,
		size: size(doc, r.request, r.result),
	}
	var holder any
	if r.place.held {
		holder = t.s.holder
	}
	for r.seq = listedAt(cmp.Or(nanos(rec.CreatedAt), t.now), rec.ID); ; r.seq++ {
		t.exec(`INSERT INTO task(seq, id, state, version, queue, host, domain, status, starts, holder, at, since, schedule, request,
			result, doc) VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, nullif(?, -1), nullif(?, -1), ?) ON CONFLICT DO NOTHING`,
			r.seq, r.id, state, opt(r.place.queue), opt(r.place.host), opt(r.place.domain), opt(statusOf(rec.Status)), r.starts, holder,
			opt(at), since, opt(rec.Schedule), r.request, r.result, doc)
		if t.err != nil || t.Changes() == 1 {
			break
		}
		if _, known := t.number("SELECT 1 FROM task WHERE id = ?", r.id); known {
			return nil, fmt.Errorf("%w: %s", errIDInUse, r.id)
		}
	}
	t.putBody(r.seq, engine.RequestBody, request)
	t.putBody(r.seq, engine.ResultBody, result)
	t.count(r.place, 1)
	t.changed = append(t.changed, r.id)
	return r, nil
}

// trust records that the operator's own URL names the host of a task's callback.
func (t *tx) trust(rec *task.Record) {
	name := hostOf(rec)
	if name == "" || !rec.Callback.Trusted {
		return
	}
	t.s.mu.Lock()
	h := t.s.hosts[name]
	known := h != nil && h.trusted
	t.s.mu.Unlock()
	if known {
		return
	}
	t.after(func() { t.s.host(name).trusted = true })
	t.exec("INSERT INTO host(name, trusted) VALUES (?, 1) ON CONFLICT(name) DO UPDATE SET trusted = 1", name)
}

// Claim implements [engine.Acceptor].
func (s *store) Claim(ctx context.Context, rec *task.Record) (engine.Lease, error) {
	doc, err := encode(rec)
	if err != nil {
		return nil, err
	}
	if err := s.admit(ctx, int64(len(doc))); err != nil {
		return nil, err
	}
	l := &lease{s: s}
	err = s.update(ctx, func(t *tx) error {
		if err := t.checkQuota(rec.CallbackDomain); err != nil {
			return err
		}
		row, err := t.insert(rec, doc, running, 0, t.now, nil, nil)
		if err == nil {
			l.row = row
			t.begun = append(t.begun, l)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Enqueue implements [engine.Acceptor].
func (s *store) Enqueue(ctx context.Context, rec *task.Record, r io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	return s.enqueue(ctx, nil, rec, r, opts)
}

// enqueue stores a task in a queue. The task is new, or with a lease the claimed one.
func (s *store) enqueue(ctx context.Context, l *lease, rec *task.Record, r io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	if rec.Queue == "" {
		return "", false, errors.New("the task names no queue")
	}
	e := &entry{opts: opts, lease: l, room: s.admit(ctx, 0)}
	// A known key is answered even if the store is full.
	if e.room != nil && opts.Key == nil {
		return "", false, e.room
	}
	var err error
	if e.body, err = s.bodies.take(r); err != nil {
		return "", false, err
	}
	if opts.Key != nil && opts.Key.Digest != nil {
		e.digest = opts.Key.Digest()
	}
	if rec.Request != nil {
		rec.Request.Size = e.body.size
	}
	e.rec = copyOf(rec)
	if e.doc, err = encode(rec); err != nil {
		s.bodies.drop(e.body.files()...)
		return "", false, err
	}
	err = s.update(ctx, func(t *tx) error { return t.enqueue(e) }, e.body.files()...)
	if err == nil && !e.created {
		s.bodies.drop(e.body.files()...)
	}
	if err != nil && !errors.Is(err, engine.ErrKeyReused) {
		return "", false, err
	}
	return e.id, e.created, err
}

// entry is a task that is about to be queued.
type entry struct {
	rec    *task.Record
	doc    []byte
	body   *body
	opts   engine.EnqueueOptions
	digest string
	lease  *lease // nil for a new task
	room   error  // the error if there is no room for it

	id      string // of the queued task
	created bool
}

func (t *tx) enqueue(e *entry) (err error) {
	if e.lease != nil {
		if _, held := t.number("SELECT 1 FROM task WHERE seq = ? AND version = ? AND state = 1", e.lease.row.seq, e.lease.row.version); !held {
			return engine.ErrLost
		}
	}
	if e.id, err = t.known(e); err != nil {
		return err
	}
	if e.id != "" {
		if e.lease == nil {
			return nil
		}
		t.after(e.lease.end)
		return t.remove(e.lease.row)
	}
	if err := cmp.Or(e.room, t.checkQuota(e.rec.CallbackDomain)); err != nil {
		return err
	}
	if most := int64(e.opts.MaxQueued); most > 0 {
		n, _ := t.number("SELECT queued FROM queue WHERE name = ?", e.rec.Queue)
		if n += t.counts[counter{countQueued, e.rec.Queue}]; n >= most {
			return fmt.Errorf("%w: %d tasks wait in %s", engine.ErrQueueFull, n, e.rec.Queue)
		}
	}
	at := cmp.Or(nanos(e.rec.NextAttemptAt), t.now)
	var r *row
	if e.lease == nil {
		r, err = t.insert(e.rec, e.doc, queued, at, t.now, e.body, nil)
	} else {
		r, err = t.handOver(e, at)
	}
	if err != nil {
		return err
	}
	if at <= t.now {
		t.s.cache.add(r, e.rec, e.body, len(e.doc))
	}
	if e.opts.Key != nil {
		t.exec(`INSERT INTO key(hash, digest, task, expires) VALUES (?, ?, ?, ?) ON CONFLICT(hash)
			DO UPDATE SET digest = excluded.digest, task = excluded.task, expires = excluded.expires`,
			e.opts.Key.Hash, e.digest, e.rec.ID, t.now+int64(engine.KeyLifetime))
	}
	e.id, e.created = e.rec.ID, true
	t.after(func() { t.s.wakeWorker(e.rec.Queue) })
	return nil
}

// handOver turns a waiting client's task into a queue's task.
func (t *tx) handOver(e *entry, at int64) (*row, error) {
	r := e.lease.row
	to := place{state: queued, queue: e.rec.Queue, host: hostOf(e.rec), domain: e.rec.CallbackDomain, size: size(e.doc, e.body.size, -1)}
	t.putBody(r.seq, engine.RequestBody, e.body)
	t.trust(e.rec)
	t.after(e.lease.end)
	err := t.step(r, to, `UPDATE task SET state = 0, version = version + 1, queue = ?, host = ?, domain = ?, starts = ?,
		holder = NULL, at = ?, since = ?, request = ?, doc = ? WHERE seq = ?`,
		to.queue, opt(to.host), opt(to.domain), e.rec.Starts, at, t.now, e.body.size, e.doc, r.seq)
	return &row{
		seq: r.seq, id: r.id, version: r.version + 1, place: to, starts: int64(e.rec.Starts), at: at, since: t.now,
		request: e.body.size, result: -1,
	}, err
}

// known returns the ID of the existing task with the entry's key or schedule. It
// returns "" if the entry is new.
func (t *tx) known(e *entry) (id string, err error) {
	if key := e.opts.Key; key != nil {
		digest := ""
		t.query("SELECT task, digest FROM key WHERE hash = ? AND expires > ?", []any{key.Hash, t.now}, func(s *sqlite3.Stmt) bool {
			id, digest = s.ColumnText(0), s.ColumnText(1)
			return false
		})
		if id != "" && digest != e.digest {
			err = engine.ErrKeyReused
		}
	}
	if id == "" && e.rec.Schedule != "" {
		id = t.text("SELECT id FROM task INDEXED BY task_schedule WHERE schedule = ? AND state = 0", e.rec.Schedule)
	}
	return id, err
}
