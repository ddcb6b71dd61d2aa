package callback

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/alert"
	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// An alert is a task without a request: its result is the alert as JSON, and it is
// delivered like any other callback. So it is signed, retried, kept across a restart,
// and visible, without code of its own.

// alerts are the alerts of this process. A reload does not repeat them.
var alerts alertLimits

// alertLimits limits the alerts. The zero value is ready to use.
type alertLimits struct {
	alert.Limiter
	storing atomic.Int64
}

const (
	// failingFor is how long a host fails before there is an alert.
	failingFor = time.Hour
	// nearlyFull is the used part of a store, in percent, at which there is an alert.
	nearlyFull = 90
	// checkInterval is how often the fill level of the store is checked.
	checkInterval = 10 * time.Second
	// maxStoringAlerts bounds the alerts that wait for a store that does not answer.
	maxStoringAlerts = 1000
	// alertPatience is how long an alert waits for such a store.
	alertPatience = 10 * time.Minute
)

// alertPath begins the path of an alert's task. It is no path of a request.
const alertPath = "alert/"

// isAlert reports whether a task is an alert.
func isAlert(rec *task.Record) bool {
	return rec.RequestMethod == "" && strings.HasPrefix(rec.RequestPath, alertPath)
}

// provisionAlert checks the URL of alerts. The delivery options are provisioned.
func (a *App) provisionAlert() error {
	if a.Alert == "" {
		return nil
	}
	if expand(&a.Alert); a.Alert == "" {
		return errors.New("alert: the placeholders of the URL expand to nothing; set them, or remove the option")
	}
	u, err := a.Delivery.trusted.CheckURL(a.Alert)
	if err != nil {
		return fmt.Errorf("alert: %w", err)
	}
	a.alertURL, a.alertHost = u.String(), safedial.HostPort(u)
	return nil
}

// raise sends an alert, unless there was one about the same subject in the last hour.
// It reports whether there was none. If hold is set, an alert that is not sent follows
// when the hour is over. The caller keeps the store open; raise does not wait for it.
func (l *alertLimits) raise(kind, name string, hold bool, data map[string]any) bool {
	a, ok := l.Raise(alert.Alert{Type: kind, Timestamp: time.Now().UTC(), Data: data}, name, hold)
	if ok {
		l.send(a)
	}
	return ok
}

// send stores an alert in the background, if the newest generation has a URL for it.
func (l *alertLimits) send(al alert.Alert) {
	a := generations.NewestRunning()
	if a == nil || a.alertURL == "" {
		return
	}
	log := a.log.With(zap.String("alert", al.Type), zap.Any("data", al.Data))
	s, err := useStore(a.engine.storeKey())
	if err != nil {
		log.Error("alert not stored", zap.Error(err))
		return
	}
	if l.storing.Add(1) > maxStoringAlerts {
		l.storing.Add(-1)
		s.leave()
		log.Error("alert not stored", zap.Error(errors.New("too many alerts wait for the store")))
		return
	}
	go func() {
		defer s.leave()
		defer l.storing.Add(-1)
		if err := a.storeAlert(s, al); err != nil {
			log.Error("alert not stored", zap.Error(err))
		}
	}()
}

// storeAlert stores the task of an alert. It tries again while the store is full or does
// not answer.
func (a *App) storeAlert(s *sharedStore, al alert.Alert) error {
	rec, body, err := a.newAlert(al)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.requeueing, alertPatience)
	defer cancel()
	lease, err := s.Claim(ctx, rec)
	for err != nil && passes(err) && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(reopenWait):
			lease, err = s.Claim(ctx, rec)
		}
	}
	if err != nil {
		return err
	}
	rec.Status, rec.FinishedAt = task.Complete, time.Now().UTC()
	s.endLease(a.log, rec.ID, func(ctx context.Context) error {
		rec, result := *rec, task.Result{ContentType: "application/json", Size: int64(len(body))}
		rec.Result = &result
		return lease.Settle(ctx, &rec, bytes.NewReader(body))
	})
	return nil
}

// newAlert returns the task of an alert, and its body.
func (a *App) newAlert(al alert.Alert) (*task.Record, []byte, error) {
	body, err := json.Marshal(al)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding the alert: %w", err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, nil, fmt.Errorf("making a task ID: %w", err)
	}
	now := time.Now().UTC()
	return &task.Record{
		Task:  task.Task{ID: id.String(), CreatedAt: now, StartedAt: now, CallbackHost: a.alertHost},
		Route: "alert", RequestPath: alertPath + al.Type,
		Callback: &task.Callback{
			URL: a.alertURL, Trusted: true, Format: encode.FormatRaw, MaxResult: defaultMaxBody,
			TaskHeader: defaultTaskHeader, StatusHeader: defaultStatusHeader,
		},
	}, body, nil
}

// storeWatch raises the alerts of a store that no attempt raises.
type storeWatch struct {
	stop context.CancelFunc
	done sync.WaitGroup
}

// start watches a store for its owner. The store must stay open until end.
func (w *storeWatch) start(s *sharedStore, owner *App) {
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	w.done.Go(func() {
		ticker := time.NewTicker(checkInterval)
		defer ticker.Stop()
		for {
			if data := s.fillLevel(ctx); data != nil && alerts.raise(alert.StoreFull, s.key.(string), false, data) {
				owner.log.Warn("store is nearly full", zap.Any("used", data["used"]), zap.Any("limit", data["limit"]))
				events.add(alert.StoreFull, owner.log, func() map[string]any { return data })
			}
			for _, a := range alerts.Held(time.Now()) {
				alerts.send(a)
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
}

// end stops watching. It may be called without start.
func (w *storeWatch) end() {
	if w.stop != nil {
		w.stop()
		w.done.Wait()
	}
}

// fillLevel describes a store that is nearly full, in bytes. It returns nil for any other
// store, and if its size is not known.
func (s *sharedStore) fillLevel(ctx context.Context) map[string]any {
	ctx, cancel := context.WithTimeout(ctx, countsTimeout)
	defer cancel()
	stats, err := s.Stats(ctx)
	if err != nil || stats.Limit == 0 || stats.Used < stats.Limit/100*nearlyFull {
		return nil
	}
	return map[string]any{"used": stats.Used, "limit": stats.Limit}
}
