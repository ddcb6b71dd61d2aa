package callback

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/alert"
	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/event"
	"github.com/caddy-callback/caddy-callback/internal/metrics"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// nodeCounts are the counts of this process. They continue after a reload.
var nodeCounts web.NodeCounts

// provisionMetrics registers the metrics of this generation.
func (a *App) provisionMetrics(registry *prometheus.Registry) (err error) {
	if a.metrics, err = metrics.New(registry, &nodeCounts); err != nil {
		return err
	}
	return metrics.RegisterStore(registry, metrics.Store{
		Open:   a.openAtOnce,
		Queues: func() []string { return slices.Collect(maps.Keys(a.queues)) },
	})
}

// openAtOnce is openEngine that does not wait for the app to start.
func (a *App) openAtOnce() (engine.Engine, func(), error) {
	if a.store.Load() == nil {
		return nil, nil, errNotOpen
	}
	s, err := useStore(a.engine.storeKey())
	if err != nil {
		return nil, nil, err
	}
	return s.Engine, s.leave, nil
}

// countCanceled counts a canceled task. No execution counts it, because the engine
// decides its verdict.
func (a *App) countCanceled(ctx context.Context, e engine.Engine, id string) {
	rec, err := e.Get(ctx, id)
	if err != nil || !rec.Ended() {
		a.log.Debug("canceled task not counted", zap.String("task_id", id), zap.Error(err))
		return
	}
	a.metrics.TaskEnded(rec)
}

// eventNames are the events emitted to Caddy's events app, by the outcome of the last
// attempt of a delivery.
var eventNames = map[deliver.Outcome]string{
	deliver.Delivered: "callback_delivered",
	deliver.Dead:      alert.Dead,
}

// deliveryData describes a delivery that has ended.
func deliveryData(rec *task.Record) map[string]any {
	last := rec.LastAttempt()
	return map[string]any{
		"task_id": rec.ID, "status": string(rec.Status), "queue": rec.Queue, "callback_host": rec.CallbackHost,
		"attempts": rec.Tries, "upstream_status": rec.UpstreamStatus,
		"last_status_code": last.StatusCode, "last_error": last.Error,
	}
}

// hostData describes a failing host.
func hostData(host engine.HostState) map[string]any {
	return map[string]any{
		"callback_host": host.Host, "failures": host.Failures, "failing_since": host.FailingSince.Format(time.RFC3339Nano),
		"last_status": host.LastStatus, "last_error": host.LastError,
	}
}

// eventsGrace is how long a stopping generation waits for its event handlers. Then
// Caddy cancels them.
const eventsGrace = 5 * time.Second

// events emits the events of this process to Caddy's events app.
var events = event.NewQueue(func() *event.Handlers {
	if a := generations.NewestRunning(); a != nil {
		return a.handlers
	}
	return nil
})

// provisionEvents subscribes to Caddy's events. The events app takes subscriptions
// until all apps have started, and must not get an event before.
func (a *App) provisionEvents(ctx caddy.Context) error {
	module, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading the events app: %w", err)
	}
	app := module.(*caddyevents.App)
	a.handlers = &event.Handlers{
		Subscribed: app.ShouldEmit,
		Emit:       func(name string, data map[string]any) { app.Emit(a.ctx, name, data) },
		Log:        a.log,
	}
	if err := app.On("started", &startedHandler{a}); err != nil {
		return fmt.Errorf("subscribing to events: %w", err)
	}
	return nil
}

// startedHandler handles the event that all apps have started.
type startedHandler struct{ app *App }

// Handle implements [caddyevents.Handler].
func (h *startedHandler) Handle(context.Context, caddy.Event) error {
	h.app.join()
	return nil
}

// endEvents ends this generation's events. It waits up to eventsGrace for the running
// handler and, if the process exits, for queued events.
func (a *App) endEvents() {
	grace := time.NewTimer(eventsGrace)
	defer grace.Stop()
	if caddy.Exiting() {
		select {
		case <-events.Idle():
		case <-grace.C:
		}
	}
	generations.Remove(a)
	select {
	case <-events.Leave(a.handlers):
	case <-grace.C:
	}
}

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
	// maxStoringAlerts bounds the alerts that wait for a store that does not answer.
	maxStoringAlerts = 1000
)

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
	a.alertReceiver = &alert.Receiver{
		URL: u.String(), Host: safedial.HostPort(u),
		TaskHeader: defaultTaskHeader, StatusHeader: defaultStatusHeader, MaxResult: defaultMaxBody,
	}
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
	if a == nil || a.alertReceiver == nil {
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
		if err := a.alertReceiver.Store(s.requeueing, s, al); err != nil {
			log.Error("alert not stored", zap.Error(err))
		}
	}()
}

// watchStore raises the alerts of a store that no delivery attempt raises.
func (a *App) watchStore(s *sharedStore) {
	s.watch.Start(s, alert.Checks{
		NearlyFull: func(level map[string]any) {
			if alerts.raise(alert.StoreFull, s.key.(string), false, level) {
				a.log.Warn("store is nearly full", zap.Any("used", level["used"]), zap.Any("limit", level["limit"]))
				events.Add(alert.StoreFull, a.log, func() map[string]any { return level })
			}
		},
		Due: func(now time.Time) {
			for _, held := range alerts.Held(now) {
				alerts.send(held)
			}
		},
	})
}
