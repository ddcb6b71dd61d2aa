package deliver

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

// attempt makes an attempt that has been granted, and stores its outcome.
func (d *Deliverer) attempt(granted *dispatch.Attempt, dl engine.Delivery) {
	rec := dl.Record()
	release := func() { d.end(granted, dispatch.Outcome{Kind: dispatch.Cancelled}) }
	defer release() // a second call changes nothing
	o := d.opts.Load()
	if o == nil || d.Quit.Err() != nil {
		d.conclude(rec, dl.Release)
		return
	}
	switch {
	case rec.Callback == nil: // a corrupt record: there is no callback to send
		d.conclude(rec, dl.Done)
		return
	case o.expired(rec, time.Now()):
		release()
		if d.conclude(rec, dl.Dead) {
			o.Observer.Expired(rec)
		}
		return
	}
	if rec.Error == task.ErrorHolderDied && rec.Tries == 0 && len(rec.Redelivered) == 0 {
		o.Observer.Failed(rec)
	}
	ans, span := d.post(o, dl)
	if ans.Err != nil && d.Quit.Err() != nil {
		o.Observer.End(rec, "", &ans, span)
		release()
		d.conclude(rec, dl.Release) // the process exits; the attempt does not count
		return
	}
	if errors.Is(ans.Err, encode.ErrSpool) || ans.Status == 0 && errors.Is(ans.Err, engine.ErrUnavailable) {
		o.Observer.End(rec, "", &ans, span)
		release()
		o.Log.Warn("delivery postponed", zap.String("task_id", rec.ID), zap.Error(ans.Err))
		d.conclude(rec, func(ctx context.Context) error { return dl.Retry(ctx, time.Now().UTC().Add(postponement)) })
		return
	}
	var host engine.HostState
	d.end(granted, outcomeOf(&ans), func(stats dispatch.Stats) { host = d.hosts.learn(rec.CallbackHost, stats, &ans) })
	rec.AddAttempt(task.Attempt{
		At: ans.At, StatusCode: ans.Status, DurationMS: ans.Took.Milliseconds(),
		Error: ans.Message(), Response: ans.Excerpt,
	})
	rec.AddTrace(ans.Trace)
	d.follows(o, dl, &ans, span)
	if host.Failures > 0 {
		o.Observer.HostFailed(rec, host, ans.At)
		d.pauseFailing(o, rec, host, ans.At)
	}
}

// postponement is the wait before the next attempt of a callback if the store or its
// disk did not answer.
const postponement = 10 * time.Second

// end ends an attempt for the dispatcher, which frees its slot. It calls learn with the
// new stats of the host.
func (d *Deliverer) end(granted *dispatch.Attempt, o dispatch.Outcome, learn ...func(dispatch.Stats)) {
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

// expired reports whether the window in which a callback may be delivered is over.
func (o *Options) expired(rec *task.Record, now time.Time) bool {
	since := rec.FinishedAt
	if n := len(rec.Redelivered); n > 0 {
		since = rec.Redelivered[n-1]
	}
	return !since.IsZero() && now.Sub(since) > o.Window
}

// post encodes the body of a callback and sends it.
func (d *Deliverer) post(o *Options, dl engine.Delivery) (ans send.Answer, span trace.Span) {
	rec := dl.Record()
	body, err := d.bodies.Encode(d.Quit, rec, dl.Result)
	if err != nil {
		return send.Answer{At: time.Now().UTC(), Err: err}, nil
	}
	defer body.Release()
	ans = o.Sender.Send(d.Quit, send.Callback{Record: rec, Body: body}, func(req *http.Request, at time.Time) {
		span = o.Observer.Begin(d.Quit, rec, req, at)
	})
	return ans, span
}

// follows determines the outcome of an attempt from its answer, and stores it.
func (d *Deliverer) follows(o *Options, dl engine.Delivery, ans *send.Answer, span trace.Span) {
	rec := dl.Record()
	rec.NextAttemptAt = time.Time{}
	var outcome Outcome
	var wait time.Duration
	var step func(context.Context) error
	switch {
	case ans.Accepted():
		outcome, rec.DeliveredAt = Delivered, ans.At.Add(ans.Took)
		step = dl.Done
	case ans.Final() || errors.Is(ans.Err, engine.ErrNotFound) || rec.Tries > len(o.Retry):
		outcome = Dead
		step = dl.Dead
	default:
		outcome = Retry
		wait = o.retryIn(rec.Tries, ans)
		rec.NextAttemptAt = time.Now().UTC().Add(wait)
		at := rec.NextAttemptAt
		step = func(ctx context.Context) error { return dl.Retry(ctx, at) }
	}
	o.Observer.End(rec, outcome, ans, span)
	if c := o.Log.Check(zap.InfoLevel, "delivery attempted"); c != nil {
		c.Write(zap.String("task_id", rec.ID), zap.Int("attempt", rec.Tries), zap.String("state", string(outcome)),
			zap.String("callback_host", rec.CallbackHost), zap.Int("status_code", ans.Status),
			zap.Duration("duration", ans.Took), zap.Duration("retry_in", wait), zap.String("error", ans.Message()))
	}
	stored := d.conclude(rec, step)
	if outcome != Retry {
		d.bodies.Drop(rec.ID)
		if stored {
			o.Observer.Ended(rec, outcome)
		}
	}
}

const (
	// storeTimeout bounds one try to store an outcome.
	storeTimeout = 30 * time.Second
	// firstStoreWait is the first wait between tries. It doubles up to maxStoreWait.
	firstStoreWait, maxStoreWait = 100 * time.Millisecond, 5 * time.Second
)

// conclude stores the end of a delivery by calling step. If the store is unavailable or
// full, it retries until step succeeds; when the process exits, it tries once more. Any
// other error is final, for instance if another gateway has decided. conclude logs what
// it cannot store.
func (d *Deliverer) conclude(rec *task.Record, step func(context.Context) error) (stored bool) {
	d.storing.Add(1)
	defer func() {
		if d.storing.Add(-1) == maxStoring-1 {
			d.wake()
		}
	}()
	for wait := firstStoreWait; ; wait = min(2*wait, maxStoreWait) {
		last := d.Stopping.Err() != nil // the process exits
		err := step(d.timeout.Context())
		if err == nil {
			d.unblock()
			return true
		}
		passes := errors.Is(err, engine.ErrUnavailable) || errors.Is(err, engine.ErrFull)
		if !passes || last {
			d.Log().Error("delivery not recorded", zap.String("task_id", rec.ID), zap.Error(err))
			return false
		}
		if wait == firstStoreWait {
			d.block(err)
		}
		select {
		case <-time.After(wait):
		case <-d.Stopping.Done():
		}
	}
}

// block stops new attempts until the store works again.
func (d *Deliverer) block(err error) {
	if d.blocked.CompareAndSwap(false, true) {
		d.Log().Error("store does not record deliveries; no more are attempted until it does",
			zap.Error(err))
	}
}

func (d *Deliverer) unblock() {
	if d.blocked.CompareAndSwap(true, false) {
		d.Log().Info("store records deliveries again")
		d.wake()
	}
}

// maxJitter bounds the jitter that is added to a long wait.
const maxJitter = 15 * time.Minute

// retryIn returns the wait after the given number of attempts: that of the retry
// schedule with jitter, or what the receiver asks for if that is longer.
func (o *Options) retryIn(tries int, ans *send.Answer) time.Duration {
	wait := o.Retry[tries-1]
	wait += rand.N(min(wait/5, maxJitter) + 1)
	return max(wait, min(ans.RetryAfter, send.MaxRetryAfter))
}
