package callback

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// sender makes attempts as one generation of the configuration says.
type sender struct {
	app  *App
	opts *Delivery
	send *send.Sender
}

func newSender(app *App) *sender {
	o := app.Delivery
	return &sender{app: app, opts: o, send: send.New(send.Options{
		Timeout: time.Duration(o.Timeout), Policy: o.policy, Trusted: o.trusted, TLS: o.tls, Keys: o.keys,
		UserAgent: "caddy-callback/" + Version, PerHost: o.PerHost,
		Dropped: func(id, name string) {
			if c := app.log.Check(zap.DebugLevel, "callback header dropped"); c != nil {
				c.Write(zap.String("task_id", id), zap.String("header", name))
			}
		},
	})}
}

// attempt makes an attempt that has been granted, and stores what follows from it.
func (d *deliverer) attempt(granted *dispatch.Attempt, dl engine.Delivery) {
	rec := dl.Record()
	release := func() { d.end(granted, dispatch.Outcome{Kind: dispatch.Cancelled}) }
	defer release() // a second call changes nothing
	s := d.current()
	if s == nil || d.store.quit.Err() != nil {
		d.conclude(rec, dl.Release)
		return
	}
	switch {
	case rec.Callback == nil: // a damaged record: nobody is called
		d.conclude(rec, dl.Done)
		return
	case s.expired(rec, time.Now()):
		release()
		s.app.metrics.expired()
		if d.conclude(rec, dl.Dead) {
			events.announce(rec, outcomeDead, s.app.log)
		}
		return
	}
	if rec.Error == task.ErrorHolderDied && rec.Tries == 0 && len(rec.Redelivered) == 0 {
		s.app.metrics.taskEnded(rec) // the engine gave the verdict
	}
	ans, span := s.post(d, dl)
	if ans.Err != nil && d.store.quit.Err() != nil {
		endAttempt(span, &ans, "")
		release()
		d.conclude(rec, dl.Release) // the process exits; the attempt does not count
		return
	}
	if errors.Is(ans.Err, encode.ErrSpool) || ans.Status == 0 && errors.Is(ans.Err, engine.ErrUnavailable) {
		endAttempt(span, &ans, "")
		release()
		s.app.log.Warn("delivery postponed", zap.String("task_id", rec.ID), zap.Error(ans.Err))
		d.conclude(rec, func(ctx context.Context) error { return dl.Retry(ctx, time.Now().UTC().Add(postponement)) })
		return
	}
	d.end(granted, outcomeOf(&ans), func(stats dispatch.Stats) { d.hosts.learn(rec.CallbackHost, stats, &ans) })
	rec.AddAttempt(task.Attempt{
		At: ans.At, StatusCode: ans.Status, DurationMS: ans.Took.Milliseconds(),
		Error: ans.Message(), Response: ans.Excerpt,
	})
	d.follows(s, dl, &ans, span)
}

// postponement is how long a callback waits that could not be attempted because the
// store or its disk did not answer.
const postponement = 10 * time.Second

// end ends an attempt for the dispatcher: its slot is free.
func (d *deliverer) end(granted *dispatch.Attempt, o dispatch.Outcome, learn ...func(dispatch.Stats)) {
	stats := d.dispatcher.Done(granted, o, time.Now())
	for _, f := range learn {
		f(stats)
	}
	d.wake()
}

func outcomeOf(ans *send.Answer) dispatch.Outcome {
	o := dispatch.Outcome{Kind: dispatch.Answered, Took: ans.Took}
	switch {
	case ans.Status != 0:
	case ans.Connected:
		o.Kind = dispatch.TimedOut
	default:
		o.Kind = dispatch.Unreachable
	}
	return o
}

// expired reports whether the time is over in which a callback may be delivered.
func (s *sender) expired(rec *task.Record, now time.Time) bool {
	since := rec.FinishedAt
	if n := len(rec.Redelivered); n > 0 {
		since = rec.Redelivered[n-1]
	}
	return !since.IsZero() && now.Sub(since) > s.opts.window()
}

// post makes the request.
func (s *sender) post(d *deliverer, dl engine.Delivery) (ans send.Answer, span trace.Span) {
	rec := dl.Record()
	ctx := d.store.quit
	body, err := d.bodies.Encode(ctx, rec, dl.Result)
	if err != nil {
		return send.Answer{At: time.Now().UTC(), Err: err}, nil
	}
	defer body.Release()
	ans = s.send.Send(ctx, send.Callback{Record: rec, Body: body, Prepare: func(req *http.Request, at time.Time) {
		s.app.setHop(ctx, req.Header, req.URL)
		span = s.app.startAttempt(rec, req, at)
	}})
	return ans, span
}

// follows stores what follows from an attempt's answer.
func (d *deliverer) follows(s *sender, dl engine.Delivery, ans *send.Answer, span trace.Span) {
	rec := dl.Record()
	rec.NextAttemptAt = time.Time{}
	var outcome string
	var wait time.Duration
	var step func(context.Context) error
	switch {
	case ans.Accepted():
		outcome, rec.DeliveredAt = outcomeDelivered, ans.At.Add(ans.Took)
		step = dl.Done
	case ans.Final() || errors.Is(ans.Err, engine.ErrNotFound) || rec.Tries > len(s.opts.Retry):
		outcome = outcomeDead
		step = dl.Dead
	default:
		outcome = outcomeRetry
		wait = s.retryIn(rec.Tries, ans)
		rec.NextAttemptAt = time.Now().UTC().Add(wait)
		at := rec.NextAttemptAt
		step = func(ctx context.Context) error { return dl.Retry(ctx, at) }
	}
	endAttempt(span, ans, outcome)
	s.app.metrics.attempted(rec, outcome, ans.At, ans.Took)
	if c := s.app.log.Check(zap.InfoLevel, "delivery attempted"); c != nil {
		c.Write(zap.String("task_id", rec.ID), zap.Int("attempt", rec.Tries), zap.String("state", outcome),
			zap.String("callback_host", rec.CallbackHost), zap.Int("status_code", ans.Status),
			zap.Duration("duration", ans.Took), zap.Duration("retry_in", wait), zap.String("error", ans.Message()))
	}
	stored := d.conclude(rec, step)
	if outcome != outcomeRetry {
		d.bodies.Drop(rec.ID)
		if stored {
			events.announce(rec, outcome, s.app.log)
		}
	}
}

const (
	// storeTimeout bounds one try to store what follows from an attempt.
	storeTimeout = 30 * time.Second
	// firstStoreWait and maxStoreWait are the waits between tries.
	firstStoreWait, maxStoreWait = 100 * time.Millisecond, 5 * time.Second
)

// conclude ends a delivery. If the store does not store it, it is tried until it
// does, or somebody else has decided. When the process exits it is tried once more. What is not stored is
// logged.
func (d *deliverer) conclude(rec *task.Record, step func(context.Context) error) (stored bool) {
	d.storing.Add(1)
	defer d.storing.Add(-1)
	for wait := firstStoreWait; ; wait = min(2*wait, maxStoreWait) {
		last := d.store.givingBack.Err() != nil // or quit: the process exits
		ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
		err := step(ctx)
		cancel()
		if err == nil {
			d.unblock()
			return true
		}
		passes := errors.Is(err, engine.ErrUnavailable) || errors.Is(err, engine.ErrFull)
		if !passes || last {
			d.store.logger().Error("delivery not recorded", zap.String("task_id", rec.ID), zap.Error(err))
			return false
		}
		if wait == firstStoreWait {
			d.block(err)
		}
		select {
		case <-time.After(wait):
		case <-d.store.givingBack.Done():
		}
	}
}

// block stops new attempts until the store stores again.
func (d *deliverer) block(err error) {
	if d.blocked.CompareAndSwap(false, true) {
		d.store.logger().Error("store does not record deliveries; no more are attempted until it does",
			zap.String("store", d.store.place), zap.Error(err))
	}
}

func (d *deliverer) unblock() {
	if d.blocked.CompareAndSwap(true, false) {
		d.store.logger().Info("store records deliveries again", zap.String("store", d.store.place))
	}
	d.wake()
}

// maxJitter bounds what is added to a long wait.
const maxJitter = 15 * time.Minute

// retryIn returns the wait after the given number of attempts. What the
// receiver asks for counts if it is longer.
func (s *sender) retryIn(tries int, ans *send.Answer) time.Duration {
	wait := time.Duration(s.opts.Retry[tries-1])
	wait += rand.N(min(wait/5, maxJitter) + 1)
	return max(wait, min(ans.RetryAfter, send.MaxRetryAfter))
}
