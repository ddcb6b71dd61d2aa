package enginetest

import (
	"cmp"
	"context"
	"io"
	"slices"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// versioned is clone, but keeps the version.
func versioned(rec *task.Record) *task.Record {
	c := clone(rec)
	c.Version = rec.Version
	return c
}

func (e *memEngine) Get(_ context.Context, id string) (*task.Record, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	if t, ok := e.tasks[id]; ok {
		return versioned(t.rec), nil
	}
	return nil, engine.ErrNotFound
}

func (e *memEngine) Open(_ context.Context, id string, part engine.Part) (io.ReadSeekCloser, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	t, ok := e.tasks[id]
	switch {
	case !ok:
		return nil, engine.ErrNotFound
	case part == engine.RequestBody:
		return reader(t.req)
	}
	return reader(t.res)
}

func (e *memEngine) Wait(ctx context.Context, id string, since uint64) (rec *task.Record, err error) {
	err = e.until(ctx, func() (bool, error) {
		t, ok := e.tasks[id]
		if !ok {
			return false, engine.ErrNotFound
		}
		if t.rec.Version == since {
			return false, nil
		}
		rec = versioned(t.rec)
		return true, nil
	})
	return rec, err
}

func (e *memEngine) List(_ context.Context, f engine.Filter, after engine.Cursor, limit int) (*engine.Page, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	last, err := after.Position()
	if err != nil {
		return nil, err
	}
	all := e.find(func(t *memTask) bool { return matches(f, t.rec) && (last == "" || t.rec.ID < last) })
	slices.SortFunc(all, func(a, b *memTask) int { return cmp.Compare(b.rec.ID, a.rec.ID) }) // they are UUIDv7
	p := &engine.Page{Scanned: len(all)}
	for _, t := range all {
		if len(p.Tasks) == limit {
			p.Next = engine.NewCursor(p.Tasks[limit-1].ID)
			break
		}
		p.Tasks = append(p.Tasks, versioned(t.rec))
	}
	if e.fault == "last page is missing" && p.Next != "" {
		p.Next = ""
	}
	return p, nil
}

func (e *memEngine) Act(_ context.Context, id string, a engine.Action) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.mu.Unlock()
	t, ok := e.tasks[id]
	if !ok {
		return engine.ErrNotFound
	}
	state := t.rec.State
	switch {
	case a.Kind == engine.Cancel && (state == task.Queued || state == task.Running):
		if l, ok := t.holder.(*memLease); ok && l.lost != nil && e.fault != "OnLost is not called" {
			go l.lost()
		}
		e.fail(t, a.Reason)
	case a.Kind == engine.RetryNow && state == task.Delivering:
		if t.holder == nil && e.paused[engine.Target{Host: t.rec.CallbackHost}] && e.fault != "deliveries to a paused host are retried" {
			return engine.ErrPaused
		}
		if t.holder == nil && t.rec.NextAttemptAt.After(time.Now()) {
			t.rec.NextAttemptAt = in(0)
			e.move(t, task.Delivering)
		}
	case a.Kind == engine.Stop && state == task.Delivering:
		if t.rec.NextAttemptAt = (time.Time{}); e.fault != "stop is not fenced" {
			t.holder = nil
		}
		e.move(t, task.Dead)
	case a.Kind == engine.Redeliver && (state == task.Done || state == task.Dead) && t.rec.Callback != nil:
		return e.redeliver(t, a)
	case a.Kind == engine.Delete && (state == task.Done || state == task.Dead):
		delete(e.tasks, id)
		e.change()
	default:
		return engine.ErrEnded
	}
	return nil
}

func (e *memEngine) redeliver(t *memTask, a engine.Action) error {
	if t.rec.Result != nil && t.res == nil {
		return engine.ErrNotKept
	}
	if t.rec.Redeliver(in(0)); a.URL != "" {
		t.rec.Callback.URL, t.rec.CallbackHost = a.URL, a.Host
	}
	t.holder = nil
	e.move(t, task.Delivering)
	return nil
}

func (e *memEngine) Pause(_ context.Context, t engine.Target, paused bool) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if e.paused[t] = paused; !paused {
		delete(e.paused, t)
		delete(e.quiet, t.Host)
		if s, known := e.hosts[t.Host]; known && e.fault != "a resumed host is still failing" {
			s.Failures, s.FailingSince = 0, time.Time{}
			e.hosts[t.Host] = s
		}
	}
	e.change()
	return nil
}

func (e *memEngine) Hosts(_ context.Context, after engine.Cursor, limit int) ([]engine.HostStats, engine.Cursor, error) {
	if err := e.begin(); err != nil {
		return nil, "", err
	}
	defer e.mu.Unlock()
	hosts := map[string]*engine.HostStats{}
	of := func(host string) *engine.HostStats {
		if hosts[host] == nil {
			hosts[host] = &engine.HostStats{HostState: e.state(host)}
		}
		return hosts[host]
	}
	for h, s := range e.hosts {
		if s.Failures > 0 {
			of(h)
		}
	}
	for t := range e.paused {
		if t.Host != "" {
			of(t.Host)
		}
	}
	for _, t := range e.tasks {
		if t.rec.State != task.Delivering {
			continue
		}
		h := of(t.rec.CallbackHost)
		h.Pending++
		if t.holder != nil {
			h.InFlight++
			continue
		}
		at := t.rec.NextAttemptAt
		if at.IsZero() {
			at = t.since
		}
		if h.Next.IsZero() || at.Before(h.Next) {
			h.Next = at
		}
	}
	var all []engine.HostStats
	for _, h := range hosts {
		all = append(all, *h)
	}
	slices.SortFunc(all, func(a, b engine.HostStats) int {
		return cmp.Or(cmp.Compare(b.Pending, a.Pending), cmp.Compare(a.Host, b.Host))
	})
	return sortedPage(all, after, limit)
}

func (e *memEngine) Queues(context.Context) ([]engine.QueueStats, error) {
	if err := e.begin(); err != nil {
		return nil, err
	}
	defer e.mu.Unlock()
	queues := map[string]*engine.QueueStats{}
	of := func(queue string) *engine.QueueStats {
		if queues[queue] == nil {
			queues[queue] = &engine.QueueStats{Queue: queue, Paused: e.paused[engine.Target{Queue: queue}]}
		}
		return queues[queue]
	}
	for t := range e.paused {
		if t.Queue != "" {
			of(t.Queue)
		}
	}
	oldest := map[*engine.QueueStats]*memTask{}
	for _, t := range e.tasks {
		switch {
		case t.rec.Queue == "":
		case t.rec.State == task.Running:
			of(t.rec.Queue).Running++
		case t.rec.State == task.Queued:
			q := of(t.rec.Queue)
			q.Queued++
			if t.place.After(time.Now()) {
				q.Delayed++
			} else if first := oldest[q]; first == nil || readySince(t.rec).Before(readySince(first.rec)) {
				oldest[q], q.Oldest = t, t.rec.CreatedAt
			}
		}
	}
	var all []engine.QueueStats
	for _, q := range queues {
		all = append(all, *q)
	}
	return all, nil
}

func (e *memEngine) Stats(context.Context) (engine.Stats, error) {
	if err := e.begin(); err != nil {
		return engine.Stats{}, err
	}
	defer e.mu.Unlock()
	s := engine.Stats{Tasks: map[task.State]int64{}}
	for _, t := range e.tasks {
		if e.fault == "counts omit finished tasks" && t.rec.Ended() && t.holder == nil {
			continue
		}
		if s.Tasks[t.rec.State]++; t.rec.State == task.Delivering && t.holder == nil && !t.rec.NextAttemptAt.After(time.Now()) {
			s.Due++
		}
	}
	return s, nil
}

func (e *memEngine) Import(_ context.Context, rec *task.Record, request, result io.Reader) error {
	if err := e.begin(); err != nil {
		return err
	}
	defer e.mu.Unlock()
	if _, ok := e.tasks[rec.ID]; ok && e.fault != "import overwrites" {
		return nil
	}
	t := e.add(rec, rec.State)
	for r, to := range map[io.Reader]**[]byte{request: &t.req, result: &t.res} {
		if r == nil {
			continue
		}
		b, err := readBody(r)
		if err != nil {
			delete(e.tasks, rec.ID)
			return err
		}
		*to = b
	}
	if rec.State == task.Running {
		t.holder, t.maxStarts = &memLease{e: e, t: t}, rec.Starts+1
		e.expire(t)
	}
	if t.since = rec.FinishedAt; t.since.IsZero() {
		t.since = time.Now()
	}
	return nil
}
