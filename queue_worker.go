package callback

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
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
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// work takes the queue's tasks in the order of their arrival and runs them,
// until ctx ends.
func (q *TaskQueue) work(ctx context.Context) {
	for {
		// One slot is waited for; what else is free is taken with it.
		n := q.slots.take(ctx, q.opts.Workers)
		if n == 0 {
			return
		}
		for w, err := range q.queue.Fetch(n) {
			if err != nil {
				q.log.Warn("tasks not fetched", zap.String("queue", q.Name), zap.Error(err))
				select {
				case <-ctx.Done():
				case <-time.After(fetchPause):
				}
				break
			}
			if ctx.Err() != nil || !q.app.working.enter() {
				w.Release()
				continue
			}
			n--
			go func() {
				defer q.app.working.leave()
				defer q.slots.give(1)
				q.take(w)
			}()
		}
		q.slots.give(n)
	}
}

// take claims a task and runs it.
func (q *TaskQueue) take(w *engine.Queued) {
	rec := *w.Record()
	if rec.ID == "" {
		if err := w.RememberTick(q.app.quit); err != nil {
			q.log.Warn("tick not remembered", zap.String("queue", q.Name), zap.Error(err))
		}
		q.app.metrics.taskAccepted(1)
		nameTick(&rec, w.Sequence(), q.headerOf(&rec))
	}
	log := q.log.With(zap.String("task_id", rec.ID), zap.String("queue", q.Name))
	rec.StartedAt, rec.NextAttemptAt = time.Now().UTC(), time.Time{}
	rec.Starts++
	x := q.newExchange(&rec)
	died := rec
	if rec.Starts >= q.opts.Attempts {
		died.Status, died.Error = task.Failed, errDied
	}
	var err error
	if x.lease, err = w.Claim(q.app.quit, died, x.supersede); err != nil {
		if !errors.Is(err, engine.ErrHeld) {
			log.Warn("task not claimed", zap.Error(err))
		}
		return
	}
	q.app.metrics.taskStarted(&rec)
	body, err := w.OpenBody(x.ctx)
	if err != nil {
		log.Error("task's request not loaded", zap.Error(err))
		if errors.Is(err, engine.ErrNotFound) {
			x.settle(verdict{status: task.Failed, message: "the task's request was lost"})
		} else if x.capture.close(false) { // the engine is unwell, the task was not begun
			q.giveBack(x, rec, time.Now().Add(fetchPause))
		}
		return
	}
	defer body.Close()
	q.run(x, body, log)
}

// newExchange makes the exchange of one run. Its client is nobody.
func (q *TaskQueue) newExchange(rec *task.Record) *exchange {
	h := &Handler{
		Timeout: caddy.Duration(rec.Timeout), TaskHeader: q.headerOf(rec), MaxResult: defaultMaxBody,
		Format: formatRaw, app: q.app, log: q.log, route: q.Name,
	}
	if rec.Callback != nil {
		h.MaxResult = rec.Callback.MaxResult
	}
	x := &exchange{h: h, rec: *rec, recorded: make(chan struct{})}
	x.rec.Blob = "" // what stands there is the request's body, not the result's
	x.capture = newCapture(nobody{make(http.Header)}, h, rec.ID)
	x.capture.keepHeader, x.capture.complete = true, x.settleResponse
	x.ctx, x.cancel = context.WithCancelCause(context.Background())
	x.stopping = q.app.givingBack
	blob := rec.Blob
	x.again = func() bool { return q.again(x, blob) }
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

// again gives a task back to its queue if it should run again: after a status
// that is worth another start, or because the gateway stops. blob is its body, if
// that stands apart.
func (q *TaskQueue) again(x *exchange, blob string) bool {
	rec := x.rec
	rec.Blob = blob
	stopped := errors.Is(context.Cause(x.ctx), errStopped)
	worth := rec.Status == task.Failed && slices.Contains(q.opts.RetryStatus, x.failedWith)
	if !stopped && (!worth || rec.Starts >= q.opts.Attempts) {
		return false
	}
	if stopped {
		q.giveBack(x, rec, time.Time{})
		return true
	}
	wait := max(runWait(rec.Starts), min(x.capture.retryAfter(), maxRetryAfter))
	q.requeue(x, rec, time.Now().Add(wait).UTC())
	return true
}

// giveBack requeues a task that was cut short, not tried: it costs no attempt.
func (q *TaskQueue) giveBack(x *exchange, rec task.Record, at time.Time) {
	rec.Starts--
	q.requeue(x, rec, at)
}

// requeue puts a task back into its queue, to wait until the given time or for
// its turn if that is zero.
func (q *TaskQueue) requeue(x *exchange, rec task.Record, at time.Time) {
	rec.Status, rec.Error, rec.Result, rec.UpstreamStatus = "", "", nil, 0
	rec.StartedAt, rec.FinishedAt, rec.NextAttemptAt = time.Time{}, time.Time{}, at
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	if err := x.lease.Requeue(ctx, &rec, at); err != nil && !errors.Is(err, engine.ErrLost) {
		// The lease lapses, and the task waits again all the same.
		q.log.Warn("task not given back", zap.String("task_id", rec.ID), zap.Error(err))
	}
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

// nameTick makes a task of a schedule's tick. header is that of the task's ID.
func nameTick(rec *task.Record, sequence uint64, header string) {
	rec.ID, rec.CreatedAt = tickID(rec.Seed, sequence), time.Now().UTC()
	if rec.Request == nil {
		return // a damaged tick
	}
	request := *rec.Request
	request.Header = headerOfRequest(rec.Request)
	request.Header.Set(header, rec.ID)
	rec.Request = &request
}

// tickID is the ID of the task that a schedule's tick makes: the same on every
// node that may get the tick, and not to be guessed without the seed.
func tickID(seed string, sequence uint64) string {
	sum := sha256.New()
	sum.Write([]byte(seed))
	sum.Write(binary.BigEndian.AppendUint64(nil, sequence))
	id := uuid.UUID(sum.Sum(nil)[:16])
	id[6] = id[6]&0x0f | 0x40 // version 4
	id[8] = id[8]&0x3f | 0x80 // RFC 9562's variant
	return id.String()
}

// nobody is the client of a task that runs from a queue.
type nobody struct{ header http.Header }

func (n nobody) Header() http.Header         { return n.header }
func (n nobody) Write(p []byte) (int, error) { return len(p), nil }
func (n nobody) WriteHeader(int)             {}
func (n nobody) Flush()                      {}
