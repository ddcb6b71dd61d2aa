package sqlite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/ncruces/go-sqlite3"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const insertTask = `INSERT INTO task(seq, id, state, version, queue, host, domain, status, starts, holder, at, since, schedule,
	request, result, doc) VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`

// kept returns the size of a body as its column stores it.
func kept(b *body) any {
	if b == nil {
		return nil
	}
	return b.size
}

// errIDInUse is returned for a new task whose ID exists already.
var errIDInUse = errors.New("the task ID is in use")

// insert stores a new task at a place, whose state is set.
func (t *tx) insert(rec *task.Record, doc []byte, p *place, at, since int64, request, result *body) (seq int64, err error) {
	if p.host, err = t.hostID(rec); err != nil {
		return 0, err
	}
	if rec.Queue != "" {
		q, err := t.queue(rec.Queue)
		if err != nil {
			return 0, err
		}
		p.queue = q.id
	}
	if p.domain, err = t.domain(rec.CallbackDomain); err != nil {
		return 0, err
	}
	p.size = int64(len(doc)) + sizeOf(request) + sizeOf(result)
	holder := int64(0)
	if p.state == running {
		holder, p.held = t.s.holder, true
	}
	var schedule any
	if rec.Schedule != "" {
		schedule = rec.Schedule
	}
	id := keyOf(rec.ID)
	for seq = listedAt(cmp.Or(nanos(rec.CreatedAt), t.now), id); ; seq++ {
		err = t.exec(insertTask, seq, id, p.state, null(p.queue), null(p.host), null(p.domain), null(statusOf(rec.Status)),
			rec.Starts, null(holder), null(at), since, schedule, kept(request), kept(result), doc)
		if err != nil {
			return 0, err
		}
		if t.Changes() == 1 {
			break
		}
		if _, known, err := t.number("SELECT 1 FROM task WHERE id = ?", id); err != nil || known {
			return 0, cmp.Or(err, fmt.Errorf("%w: %s", errIDInUse, rec.ID))
		}
	}
	if err := t.putBody(seq, engine.RequestBody, request); err != nil {
		return 0, err
	}
	if err := t.putBody(seq, engine.ResultBody, result); err != nil {
		return 0, err
	}
	t.move(rec.ID, nowhere, *p)
	return seq, nil
}

func sizeOf(b *body) int64 {
	if b == nil {
		return 0
	}
	return b.size
}

// hostID returns the ID of the host of a task's callback. It returns 0 if there is no
// callback.
func (t *tx) hostID(rec *task.Record) (int64, error) {
	h, err := t.host(hostOf(rec))
	if err != nil || h == nil {
		return 0, err
	}
	if rec.Callback.Trusted && !h.trusted {
		t.after(func() { h.trusted = true })
		err = t.exec("UPDATE host SET trusted = 1 WHERE id = ?", h.id)
	}
	return h.id, err
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
	l := &lease{s: s, id: rec.ID, waiting: true, version: 1}
	err = s.updateOrUndo(ctx, func(t *tx) error {
		if err := t.checkQuota(rec.CallbackDomain); err != nil {
			return err
		}
		p := place{state: running}
		seq, err := t.insert(rec, doc, &p, 0, t.now, nil, nil)
		if err != nil {
			return err
		}
		t.after(func() {
			l.seq, l.place = seq, p
			s.leases[seq] = l
		})
		return nil
	}, func() { l.abandon() })
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
	// A known key is answered even if the store is full.
	room := s.admit(ctx, 0)
	if room != nil && opts.Key == nil {
		return "", false, room
	}
	body, err := s.takeBody(r)
	if err != nil {
		return "", false, err
	}
	digest := ""
	if opts.Key != nil && opts.Key.Digest != nil {
		digest = opts.Key.Digest()
	}
	if rec.Request != nil {
		rec.Request.Size = body.size
	}
	doc, err := encode(rec)
	if err != nil {
		s.bodies.remove(files(body))
		return "", false, err
	}
	e := &entry{rec: copyOf(rec), doc: doc, body: body, opts: opts, digest: digest, lease: l, room: room}
	apply := func(t *tx) error { return t.enqueue(e) }
	if l == nil {
		err = s.update(ctx, apply)
	} else {
		err = l.step(ctx, s, "enqueue", apply)
	}
	if errors.Is(err, engine.ErrUnavailable) || ctx.Err() != nil && err != nil {
		return "", false, err // it may still be stored
	}
	stored := e
	if l != nil && err == nil {
		s.mu.Lock()
		stored = l.queued // by this call, or by an earlier one that was interrupted
		s.mu.Unlock()
	}
	if err != nil || stored != e || !e.created {
		s.bodies.remove(files(body))
	}
	if err != nil && !errors.Is(err, engine.ErrKeyReused) {
		return "", false, err
	}
	return stored.id, stored.created, err
}

// takeBody reads the body of a request.
func (s *store) takeBody(r io.Reader) (*body, error) {
	b, err := s.bodies.take(r, -1)
	var source readError
	switch {
	case errors.As(err, &source):
		return nil, source.error
	case err != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, errQuota)):
		return nil, fmt.Errorf("%w: %w", engine.ErrFull, err)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	return b, nil
}

func files(b *body) []string {
	if b == nil || b.file == "" {
		return nil
	}
	return []string{b.file}
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

func (t *tx) enqueue(e *entry) error {
	e.id, e.created = "", false
	if e.lease != nil {
		if err := e.lease.check(t); err != nil {
			return err
		}
	}
	if known, err := t.known(e); err != nil || known != "" {
		e.id = known
		if err == nil && e.lease != nil {
			t.after(func() { e.lease.queued = e })
			return t.removeClaimed(e.lease)
		}
		return err
	}
	if e.room != nil {
		return e.room
	}
	if err := t.checkQuota(e.rec.CallbackDomain); err != nil {
		return err
	}
	q, err := t.queue(e.rec.Queue)
	if err != nil {
		return err
	}
	if e.opts.MaxQueued > 0 {
		t.s.mu.Lock()
		n := q.queued + t.queued[q.id]
		t.s.mu.Unlock()
		if n >= int64(e.opts.MaxQueued) {
			return fmt.Errorf("%w: %d tasks wait in %s", engine.ErrQueueFull, n, e.rec.Queue)
		}
	}
	at := cmp.Or(nanos(e.rec.NextAttemptAt), t.now)
	if e.lease == nil {
		p := place{state: queued}
		_, err = t.insert(e.rec, e.doc, &p, at, t.now, e.body, nil)
	} else {
		err = t.toQueue(e.lease, e, at)
	}
	if err != nil {
		return err
	}
	if e.opts.Key != nil {
		err := t.exec(`INSERT INTO key(hash, digest, task, expires) VALUES (?, ?, ?, ?) ON CONFLICT(hash)
			DO UPDATE SET digest = excluded.digest, task = excluded.task, expires = excluded.expires`,
			e.opts.Key.Hash, e.digest, e.rec.ID, t.now+int64(engine.KeyLifetime))
		if err != nil {
			return err
		}
	}
	e.id, e.created = e.rec.ID, true
	t.after(func() {
		q.ready(1)
		if e.lease != nil {
			e.lease.queued = e
		}
	})
	return nil
}

// known returns the ID of the existing task with the entry's key or schedule. It
// returns "" if the entry is new.
func (t *tx) known(e *entry) (id string, err error) {
	if key := e.opts.Key; key != nil {
		var digest string
		err := t.query("SELECT task, digest FROM key WHERE hash = ? AND expires > ?", []any{key.Hash, t.now}, func(s *sqlite3.Stmt) bool {
			id, digest = s.ColumnText(0), s.ColumnText(1)
			return false
		})
		if err != nil || id != "" {
			if err == nil && digest != e.digest {
				err = engine.ErrKeyReused
			}
			return id, err
		}
	}
	if e.rec.Schedule == "" {
		return "", nil
	}
	err = t.query("SELECT id FROM task INDEXED BY task_schedule WHERE schedule = ? AND state = 0", []any{e.rec.Schedule},
		func(s *sqlite3.Stmt) bool {
			id = nameOf(s.ColumnRawBlob(0))
			return false
		})
	return id, err
}
