package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// Act implements [engine.Tasks].
func (s *store) Act(ctx context.Context, id string, a engine.Action) error {
	return s.update(ctx, func(t *tx) error {
		r, err := find(t.conn, id)
		if err != nil {
			return err
		}
		switch state := r.place.state; {
		case a.Kind == engine.Cancel && (state == queued || state == running):
			if err := t.fail(r, a.Reason); err != nil {
				return err
			}
			t.after(func() { s.loseLease(r.seq) })
			return nil
		case a.Kind == engine.RetryNow && state == delivering:
			return t.retryNow(r)
		case a.Kind == engine.Stop && state == delivering:
			return t.giveUpOne(r)
		case a.Kind == engine.Redeliver && (state == done || state == dead):
			return t.redeliver(r, a)
		case a.Kind == engine.Delete && (state == done || state == dead):
			return t.remove(r)
		}
		return ended(r)
	})
}

func ended(r *row) error {
	return fmt.Errorf("%w: task %s is %s", engine.ErrEnded, r.id, stateNames[r.place.state])
}

func (t *tx) retryNow(r *row) error {
	t.s.mu.Lock()
	inFlight, paused := t.s.inFlight[r.seq] != nil, t.s.paused[engine.Target{Host: r.place.host}]
	t.s.mu.Unlock()
	switch {
	case paused && !inFlight:
		return engine.ErrPaused
	case inFlight || r.place.held || r.at <= t.now:
		return nil
	}
	t.changed = append(t.changed, r.id)
	t.after(func() { t.s.dueAt(r.place.host, t.now) })
	t.exec("UPDATE task SET version = version + 1, at = ? WHERE seq = ?", t.now, r.seq)
	return nil
}

func (t *tx) redeliver(r *row, a engine.Action) error {
	rec, err := r.record()
	if err != nil {
		return err
	}
	if rec.Callback == nil {
		return ended(r)
	}
	if rec.Result != nil && r.result < 0 {
		return engine.ErrNotKept
	}
	rec.Redeliver(time.Unix(0, t.now).UTC())
	if a.URL != "" {
		callback := *rec.Callback
		callback.URL = a.URL
		rec.Callback, rec.CallbackHost = &callback, a.Host
	}
	doc, err := encode(rec)
	if err != nil {
		return err
	}
	to := r.place
	to.state, to.host, to.size = delivering, hostOf(rec), size(doc, r.request, r.result)
	t.after(func() { t.s.dueAt(to.host, t.now) })
	t.trust(rec)
	return t.step(r, to, "UPDATE task SET state = 2, version = version + 1, host = ?, at = ?, since = ?, doc = ? WHERE seq = ?",
		to.host, t.now, t.now, doc, r.seq)
}
