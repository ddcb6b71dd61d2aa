package sqlite

import (
	"cmp"
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
		switch a.Kind {
		case engine.Cancel:
			return t.cancel(r, a.Reason)
		case engine.RetryNow:
			return t.retryNow(r)
		case engine.Stop:
			if r.place.state != delivering {
				return ended(r)
			}
			return t.giveUpOne(r)
		case engine.Redeliver:
			return t.redeliver(r, a)
		case engine.Delete:
			if r.place.state != done && r.place.state != dead {
				return ended(r)
			}
			return t.remove(r)
		}
		return fmt.Errorf("there is no action %d", a.Kind)
	})
}

func ended(r *row) error {
	return fmt.Errorf("%w: task %s is %s", engine.ErrEnded, r.id, stateNames[r.place.state])
}

func (t *tx) cancel(r *row, reason string) error {
	if r.place.state != queued && r.place.state != running {
		return ended(r)
	}
	if err := t.fail(r, reason); err != nil {
		return err
	}
	t.after(func() { t.s.loseLease(r.seq) })
	return nil
}

func (t *tx) retryNow(r *row) error {
	t.s.mu.Lock()
	busy := t.s.inFlight[r.seq] != nil
	t.s.mu.Unlock()
	if r.place.state != delivering {
		return ended(r)
	}
	if busy || r.place.held || r.at <= t.now {
		return nil
	}
	t.changed = append(t.changed, r.id)
	t.after(func() { t.s.dueAt(r.place.host, t.now) })
	return t.exec("UPDATE task SET version = version + 1, at = ? WHERE seq = ?", t.now, r.seq)
}

func (t *tx) redeliver(r *row, a engine.Action) error {
	if r.place.state != done && r.place.state != dead {
		return ended(r)
	}
	rec, err := r.record()
	if err != nil {
		return err
	}
	if rec.Callback == nil && a.URL == "" {
		return ended(r)
	}
	if rec.Result != nil && r.result < 0 {
		return engine.ErrNotKept
	}
	rec.Redeliver(time.Unix(0, t.now).UTC())
	if a.URL != "" {
		if rec.Callback == nil {
			return ended(r)
		}
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
	t.move(r, to)
	t.after(func() { t.s.dueAt(to.host, t.now) })
	err = t.exec("UPDATE task SET state = 2, version = version + 1, host = ?, at = ?, since = ?, doc = ? WHERE seq = ?",
		to.host, t.now, t.now, doc, r.seq)
	return cmp.Or(err, t.trust(rec))
}
