package callback

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/pace"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/tracing"
)

// fetchPause keeps a worker from calling an unavailable engine in a tight loop.
const fetchPause = time.Second

// work takes the queue's jobs in the order in which they become ready and runs them,
// until ctx ends.
func (q *TaskQueue) work(ctx context.Context, s *sharedStore) {
	jobs, slots := s.Jobs(q.Name), s.slotsOf(q.Name)
	for {
		// Wait for one slot, and take all other free slots with it.
		n := slots.Acquire(ctx, q.opts.Workers)
		if n == 0 {
			return
		}
		batch, err := q.next(ctx, jobs, slots, n)
		for _, job := range batch {
			if ctx.Err() != nil {
				q.releaseJob(s, job)
				continue
			}
			n--
			s.use()
			go func() {
				defer s.leave()
				defer slots.Release(1)
				q.begin(s, job)
			}()
		}
		slots.Release(n)
		if err != nil && ctx.Err() == nil {
			q.log.Warn("taking jobs failed", zap.String("queue", q.Name), zap.Error(err))
			select {
			case <-ctx.Done():
			case <-time.After(fetchPause):
			}
		}
	}
}

// next waits for jobs and claims up to n of them. With a rate, it first waits until a
// start is permitted, so that a job waits in the engine, where another gateway can take
// it.
func (q *TaskQueue) next(ctx context.Context, jobs engine.JobSource, slots *pace.Slots, n int) ([]engine.Job, error) {
	interval := q.opts.interval
	if interval == 0 {
		return jobs.Next(ctx, n, q.opts.Attempts)
	}
	if n = min(n, slots.Pace.Acquire(ctx, interval)); n == 0 {
		return nil, ctx.Err()
	}
	batch, err := jobs.Next(ctx, n, q.opts.Attempts)
	started := len(batch)
	if ctx.Err() != nil {
		started = 0 // they are released
	}
	slots.Pace.Release(interval, started)
	return batch, err
}

// releaseJob releases a job that was taken too late to start.
func (q *TaskQueue) releaseJob(s *sharedStore, job engine.Job) {
	s.endLease(q.log, job.Record.ID, job.Lease.Release)
}

// begin runs a job.
func (q *TaskQueue) begin(s *sharedStore, job engine.Job) {
	rec := job.Record
	x := q.newExecution(s, job)
	job.Lease.OnLost(x.supersede)
	q.app.metrics.TaskStarted(rec)
	if rec.Poll != nil && x.elapsed >= x.timeout {
		x.timeOut()
		return
	}
	body, err := openRequest(x.ctx, s, job)
	if err != nil {
		q.logOf(x).Error("request of a job not opened", zap.Error(err))
		if errors.Is(err, engine.ErrNotFound) {
			x.settle(verdict{status: task.Failed, message: "the task's request was lost"})
		} else if x.response.Close(false) { // the engine is unavailable, and the job has not started
			rec := *rec
			rec.Starts--
			q.requeue(x, rec, time.Now().Add(fetchPause))
		}
		return
	}
	defer body.Close()
	q.run(x, body)
}

// logOf returns the logger of a job. Most jobs need none.
func (q *TaskQueue) logOf(x *execution) *zap.Logger {
	return q.log.With(zap.String("task_id", x.rec.ID), zap.String("queue", q.Name))
}

// openRequest opens the body of a job's request.
func openRequest(ctx context.Context, s *sharedStore, job engine.Job) (io.ReadCloser, error) {
	switch {
	case job.Record.Request == nil: // a damaged record
		return nil, engine.ErrNotFound
	case job.Record.Request.Size == 0, job.Record.Poll != nil:
		return http.NoBody, nil
	case job.Request != nil:
		return io.NopCloser(bytes.NewReader(job.Request)), nil
	}
	return s.Open(ctx, job.Record.ID, engine.RequestBody)
}

// newExecution returns the execution of one run. No client waits for it.
func (q *TaskQueue) newExecution(s *sharedStore, job engine.Job) *execution {
	rec := *job.Record
	kept := capture.ResponseOptions{Limit: q.callback.MaxResult, AsSent: true, KeepHeader: true}
	if rec.Callback != nil {
		kept.Limit = rec.Callback.MaxResult
		q.app.keepLarge(&kept, rec.Callback)
	}
	if rec.Request != nil {
		kept.ToHEAD = rec.NextRequest().Method == http.MethodHead
	}
	if rec.StartedAt.IsZero() {
		rec.StartedAt = time.Now().UTC()
	}
	rec.NextAttemptAt = time.Time{}
	set := settings{timeout: rec.Timeout, elapsed: rec.Elapsed(time.Now()), taskHeader: q.headerOf(&rec), kept: kept}
	x := q.app.newExecution(context.Background(), s, set, &rec, nil)
	x.log, x.lease, x.stopping = q.log, job.Lease, s.requeueing
	x.again = func(body *capture.Copy) bool { return q.again(x, body) }
	return x
}

// run runs the block on the task's request.
func (q *TaskQueue) run(x *execution, body io.ReadCloser) {
	r, err := q.request(x, body)
	if err != nil {
		q.logOf(x).Error("request of a job not restored", zap.Error(err))
		x.settle(verdict{status: task.Failed, message: "the task's request could not be rebuilt"})
		return
	}
	defer func() {
		// Caddy handles panics of a client's request. This run has no other handler.
		if cause := recover(); cause != nil && cause != http.ErrAbortHandler {
			q.logOf(x).Error("task panicked", zap.Any("panic", cause))
		}
	}()
	setup := &q.app.tracing
	ctx, span := setup.tracer.StartRun(x.ctx, &x.rec, r.Header, setup.queues[q.Name])
	x.ctx = ctx
	defer tracing.EndRun(span, &x.rec)
	err = x.serve(r, q.block)
	if x.pending {
		q.logOf(x).Debug("endpoint answers later", zap.Int("upstream_status", x.rec.UpstreamStatus), zap.Error(err))
		return
	}
	if c := q.log.Check(zap.InfoLevel, "task run"); c != nil {
		c.Write(zap.String("task_id", x.rec.ID), zap.String("queue", q.Name), zap.Int("start", x.rec.Starts), zap.String("status", string(x.rec.Status)),
			zap.Int("upstream_status", x.rec.UpstreamStatus), zap.Duration("waited", x.rec.StartedAt.Sub(x.rec.WaitsSince())),
			zap.Duration("ran", time.Since(x.rec.StartedAt)), zap.Error(err))
	}
}

// request returns the stored request, prepared for the block's handlers.
func (q *TaskQueue) request(x *execution, body io.ReadCloser) (*http.Request, error) {
	stored := x.rec.NextRequest()
	u, err := url.ParseRequestURI(stored.URI)
	if err != nil {
		return nil, fmt.Errorf("parsing the stored URI: %w", err)
	}
	r := &http.Request{
		Method: stored.Method, URL: u, RequestURI: stored.URI, Proto: stored.Proto,
		Header: headerOfRequest(stored), Host: stored.Host, RemoteAddr: stored.RemoteAddr,
		Body: body, ContentLength: stored.Size,
	}
	if major, minor, ok := http.ParseHTTPVersion(stored.Proto); ok {
		r.ProtoMajor, r.ProtoMinor = major, minor
	}
	if stored.Size == 0 {
		r.Body = http.NoBody
	}
	if stored.TLS {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: stored.Host}
	}
	r = r.WithContext(x.ctx)
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), &x.response, q.server)
	x.ctx = r.Context()
	if stored.Path != "" {
		if r.URL, err = url.ParseRequestURI(stored.Path); err != nil {
			return nil, fmt.Errorf("parsing the stored path: %w", err)
		}
	}
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	for name, value := range stored.Vars {
		vars[name] = value
	}
	return r, nil
}

// again puts a job back into its queue if it should run again: because the gateway stops,
// to poll its endpoint, or after a status in retry_status. It reports whether it did.
func (q *TaskQueue) again(x *execution, body *capture.Copy) bool {
	if errors.Is(context.Cause(x.ctx), errStopped) {
		q.releaseJob(x.store, engine.Job{Record: &x.rec, Lease: x.lease}) // this does not count as an attempt
		return true
	}
	if q.pollAgain(x, body) {
		return true
	}
	worth := x.rec.Poll == nil && x.rec.Status == task.Failed && slices.Contains(q.opts.RetryStatus, x.failedWith)
	if !worth || x.rec.Starts >= q.opts.Attempts {
		return false
	}
	wait := max(runWait(x.rec.Starts), min(send.ParseRetryAfter(x.response.Header().Get("Retry-After"), time.Now()), send.MaxRetryAfter))
	q.requeue(x, x.rec, time.Now().Add(wait).UTC())
	return true
}

// requeue puts a job back into its queue. The job runs again at the given time.
func (q *TaskQueue) requeue(x *execution, rec task.Record, at time.Time) {
	rec.Status, rec.Error, rec.Result, rec.UpstreamStatus = "", "", nil, 0
	rec.StartedAt, rec.FinishedAt, rec.NextAttemptAt = time.Time{}, time.Time{}, at
	x.store.endLease(q.log, rec.ID, func(ctx context.Context) error { return x.lease.Requeue(ctx, &rec, at) })
}

// runWaits are the waits between the starts of a task.
var runWaits = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute}

// runWait returns the wait after a task was started the given number of times. It adds
// jitter of up to a fifth.
func runWait(starts int) time.Duration {
	wait := runWaits[min(max(starts, 1), len(runWaits))-1]
	return wait + rand.N(wait/5+1)
}

// headerOf returns the name of the header that has the task's ID.
func (q *TaskQueue) headerOf(rec *task.Record) string {
	if rec.Callback != nil {
		return rec.Callback.TaskHeader
	}
	return q.callback.TaskHeader
}

// headerOfRequest returns a copy of a stored request's header. An empty header is not
// stored.
func headerOfRequest(stored *task.Request) http.Header {
	if stored.Header == nil {
		return make(http.Header)
	}
	return stored.Header.Clone()
}

// workers run the jobs of the queues of a generation.
type workers struct {
	mu     sync.Mutex
	loops  sync.WaitGroup
	cancel context.CancelFunc // nil while no worker runs
}

// start starts the workers if the app's store is open. It may be called again.
func (w *workers) start(a *App) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := a.store.Load()
	if s == nil || w.cancel != nil {
		return
	}
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	for _, q := range a.queues {
		w.loops.Go(func() { q.work(ctx, s) })
	}
}

// stop stops taking jobs. Running jobs continue. It may be called again.
func (w *workers) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cancel == nil {
		return
	}
	w.cancel()
	w.loops.Wait()
	w.cancel = nil
}

// slotsOf returns the slots of a queue on this node.
func (s *sharedStore) slotsOf(queue string) *pace.Slots {
	all, _ := s.slots.LoadOrStore(queue, pace.NewSlots())
	return all.(*pace.Slots)
}
