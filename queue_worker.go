package callback

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// fetchPause keeps an engine that is away from being asked in a tight loop.
const fetchPause = time.Second

// work takes the queue's jobs in the order in which they are ready and runs them,
// until ctx ends.
func (q *TaskQueue) work(ctx context.Context, s *sharedStore) {
	jobs, slots := s.Jobs(q.Name), s.slotsOf(q.Name)
	for {
		// One slot is waited for; what else is free is taken with it.
		n := slots.take(ctx, q.opts.Workers)
		if n == 0 {
			return
		}
		batch, err := jobs.Next(ctx, n, q.opts.Attempts)
		for _, job := range batch {
			if ctx.Err() != nil {
				q.putBack(s, job)
				continue
			}
			n--
			s.use()
			go func() {
				defer s.leave()
				defer slots.give(1)
				q.begin(s, job)
			}()
		}
		slots.give(n)
		if err != nil && ctx.Err() == nil {
			q.log.Warn("taking jobs from the queue", zap.String("queue", q.Name), zap.Error(err))
			select {
			case <-ctx.Done():
			case <-time.After(fetchPause):
			}
		}
	}
}

// putBack releases a job that came too late to be begun.
func (q *TaskQueue) putBack(s *sharedStore, job engine.Job) {
	s.endLease(q.log, job.Record.ID, job.Lease.Release)
}

// begin runs a job that has been claimed.
func (q *TaskQueue) begin(s *sharedStore, job engine.Job) {
	rec := job.Record
	log := q.log.With(zap.String("task_id", rec.ID), zap.String("queue", q.Name))
	x := q.newExchange(s, job)
	job.Lease.OnLost(x.supersede)
	q.app.metrics.taskStarted(rec)
	body, err := openRequest(x.ctx, s, rec)
	if err != nil {
		log.Error("opening the request of a job", zap.Error(err))
		if errors.Is(err, engine.ErrNotFound) {
			x.settle(verdict{status: task.Failed, message: "the task's request was lost"})
		} else if x.capture.close(false) { // the engine is unwell, the job was not begun
			rec := *rec
			rec.Starts--
			q.requeue(x, rec, time.Now().Add(fetchPause))
		}
		return
	}
	defer body.Close()
	q.run(x, body, log)
}

// openRequest opens the body of the request that a job runs with.
func openRequest(ctx context.Context, s *sharedStore, rec *task.Record) (io.ReadCloser, error) {
	switch {
	case rec.Request == nil: // a damaged record
		return nil, engine.ErrNotFound
	case rec.Request.Size == 0:
		return http.NoBody, nil
	}
	return s.Open(ctx, rec.ID, engine.RequestBody)
}

// newExchange makes the exchange of one run. Its client is nobody.
func (q *TaskQueue) newExchange(s *sharedStore, job engine.Job) *exchange {
	rec := job.Record
	h := &Handler{
		Timeout: caddy.Duration(rec.Timeout), TaskHeader: q.headerOf(rec), MaxResult: defaultMaxBody,
		Format: formatRaw, app: q.app, log: q.log, route: q.Name,
	}
	if rec.Callback != nil {
		h.MaxResult = rec.Callback.MaxResult
	}
	x := &exchange{h: h, store: s, lease: job.Lease, rec: *rec, recorded: make(chan struct{})}
	if x.rec.StartedAt.IsZero() {
		x.rec.StartedAt = time.Now().UTC()
	}
	x.rec.NextAttemptAt = time.Time{}
	x.capture = newCapture(nobody{make(http.Header)}, h, rec.ID)
	x.capture.keepHeader, x.capture.complete = true, x.settleResponse
	x.ctx, x.cancel = context.WithCancelCause(context.Background())
	x.stopping = s.givingBack
	x.again = func() bool { return q.again(x) }
	return x
}

// run runs the block on the task's request.
func (q *TaskQueue) run(x *exchange, body io.ReadCloser, log *zap.Logger) {
	r, err := q.request(x, body)
	if err != nil {
		log.Error("task's request not rebuilt", zap.Error(err))
		x.settle(verdict{status: task.Failed, message: "the task's request could not be rebuilt"})
		return
	}
	defer func() {
		// A waiting client's panic is Caddy's to handle; here there is nobody else.
		if cause := recover(); cause != nil && cause != http.ErrAbortHandler {
			log.Error("task panicked", zap.Any("panic", cause))
		}
	}()
	span := q.startRun(x, r)
	defer endRun(span, &x.rec)
	err = x.serve(r, q.block)
	if c := log.Check(zap.InfoLevel, "task run"); c != nil {
		c.Write(zap.Int("start", x.rec.Starts), zap.String("status", string(x.rec.Status)),
			zap.Int("upstream_status", x.rec.UpstreamStatus), zap.Duration("waited", x.rec.StartedAt.Sub(x.rec.CreatedAt)),
			zap.Duration("ran", time.Since(x.rec.StartedAt)), zap.Error(err))
	}
}

// request makes the stored request fit for the block's handlers.
func (q *TaskQueue) request(x *exchange, body io.ReadCloser) (*http.Request, error) {
	stored := x.rec.Request
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
	x.capture.ofHEAD = stored.Method == http.MethodHead
	if stored.TLS {
		r.TLS = &tls.ConnectionState{HandshakeComplete: true, ServerName: stored.Host}
	}
	r = r.WithContext(x.ctx)
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), x.capture, q.server)
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

// again puts a job back into its queue if it should run again: after a status that
// is worth another start, or because the gateway stops.
func (q *TaskQueue) again(x *exchange) bool {
	if errors.Is(context.Cause(x.ctx), errStopped) {
		q.putBack(x.store, engine.Job{Record: &x.rec, Lease: x.lease}) // it costs no attempt
		return true
	}
	worth := x.rec.Status == task.Failed && slices.Contains(q.opts.RetryStatus, x.failedWith)
	if !worth || x.rec.Starts >= q.opts.Attempts {
		return false
	}
	wait := max(runWait(x.rec.Starts), min(x.capture.retryAfter(), send.MaxRetryAfter))
	q.requeue(x, x.rec, time.Now().Add(wait).UTC())
	return true
}

// requeue puts a job back into its queue, to wait until the given time.
func (q *TaskQueue) requeue(x *exchange, rec task.Record, at time.Time) {
	rec.Status, rec.Error, rec.Result, rec.UpstreamStatus = "", "", nil, 0
	rec.StartedAt, rec.FinishedAt, rec.NextAttemptAt = time.Time{}, time.Time{}, at
	x.store.endLease(q.log, rec.ID, func(ctx context.Context) error { return x.lease.Requeue(ctx, &rec, at) })
}

// runWaits are the waits between the starts of a task.
var runWaits = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute}

// runWait is the wait after a task was begun the given number of times. Jitter
// only adds, up to a fifth.
func runWait(starts int) time.Duration {
	wait := runWaits[min(max(starts, 1), len(runWaits))-1]
	return wait + rand.N(wait/5+1)
}

// headerOf is the header of a task's ID.
func (q *TaskQueue) headerOf(rec *task.Record) string {
	if rec.Callback != nil {
		return rec.Callback.TaskHeader
	}
	return q.taskHeader()
}

// headerOfRequest returns the header of a stored request; one that is empty is not
// stored.
func headerOfRequest(stored *task.Request) http.Header {
	if stored.Header == nil {
		return make(http.Header)
	}
	return stored.Header.Clone()
}

// nobody is the client of a task that runs from a queue.
type nobody struct{ header http.Header }

func (n nobody) Header() http.Header         { return n.header }
func (n nobody) Write(p []byte) (int, error) { return len(p), nil }
func (n nobody) WriteHeader(int)             {}
func (n nobody) Flush()                      {}
