package callback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// exchange is one task whose client waits for its response.
type exchange struct {
	h       *Handler
	store   *sharedStore
	lease   engine.Lease
	rec     task.Record
	capture *capture
	ctx     context.Context // the handler's: ends with the task, not with the client
	cancel  context.CancelCauseFunc
	// recorded is closed when the verdict is in the engine, or another stands.
	recorded chan struct{}
	// again, if set, may give the task back to its queue instead of recording a
	// verdict on it, and says whether it did.
	again func() bool
	// failedWith is the status that the task failed with, the endpoint's or the
	// one of the gateway's own error; 0 if there is none.
	failedWith int
	// upgradable says that the client can go on in another protocol if the endpoint
	// agrees. Then the request turns out to be no task.
	upgradable bool
	// stopping ends when a task that still runs must be given up.
	stopping context.Context
}

// claim makes a task of the request: from here on it gets its callback.
func (h *Handler) claim(s *sharedStore, callback *task.Callback, host string, w http.ResponseWriter, r *http.Request) (*exchange, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making a task ID: %w", err)
	}
	now := time.Now().UTC()
	x := &exchange{
		h:        h,
		store:    s,
		capture:  newCapture(w, h, id.String()),
		recorded: make(chan struct{}),
		stopping: s.quit,
		rec: task.Record{
			Task:  task.Task{ID: id.String(), CreatedAt: now, StartedAt: now, CallbackHost: host},
			Route: h.route, Callback: callback, CallbackDomain: quotaDomain(callback, host), Span: spanOf(r.Context()),
		},
	}
	x.capture.complete = x.settleResponse
	x.capture.ofHEAD = r.Method == http.MethodHead // of the command line only
	x.ctx, x.cancel = context.WithCancelCause(context.WithoutCancel(r.Context()))
	claimed := x.rec
	if x.lease, err = s.Claim(x.ctx, &claimed); err != nil {
		x.cancel(err)
		return nil, err
	}
	x.lease.OnLost(x.supersede)
	h.app.metrics.taskAccepted(1)
	return x, nil
}

// serve runs the handlers after this one, detached from the client, and sees
// to it that the verdict is recorded before the response ends.
func (x *exchange) serve(r *http.Request, next caddyhttp.Handler) (err error) {
	defer x.cancel(nil)
	deadline := time.AfterFunc(time.Duration(x.h.Timeout), x.reachDeadline)
	defer deadline.Stop()
	defer context.AfterFunc(x.stopping, x.abandon)()

	limitConnection(r.Header)
	if x.upgradable && isUpgrade(r) {
		x.capture.switched = x.dissolve
	} else {
		passOver(r.Header)
	}
	dropHeader(r.Header, x.h.TaskHeader)
	r.Header.Set(x.h.TaskHeader, x.rec.ID)
	x.capture.setTaskHeader()
	defer func() {
		cause := recover()
		if cause != nil {
			x.settleBroken()
		}
		<-x.recorded
		switch {
		case x.capture.isMuted() && (cause == nil || cause == http.ErrAbortHandler):
			err = x.cutOff()
		case cause != nil:
			panic(cause) // Caddy's to handle
		}
	}()
	defer inFlight.add(x)()
	ctx := &requestContext{client: r.Context(), task: x.handlerContext(r.Context()), exchange: x}
	defer ctx.over.Store(true)
	// In place: Caddy's placeholders, {http.request.body} for one, read the request
	// that it has prepared, not a copy of it.
	*r = *r.WithContext(ctx)
	err = next.ServeHTTP(x.capture, r)
	if err == nil && !x.capture.begun && hasSwitched(r) {
		err = errSwitched
	}
	switch {
	case err != nil:
		message, code := endpointError(err)
		x.settle(verdict{status: task.Failed, message: message, code: code})
	case x.capture.short():
		x.settleBroken()
	default:
		x.settleResponse()
	}
	return err
}

// errSwitched is what becomes of a response 101 to a request that did not ask for
// another protocol. reverse_proxy takes it for its own and writes nothing.
var errSwitched = caddyhttp.Error(http.StatusBadGateway, errors.New("the endpoint switched to a protocol that was not asked for"))

// hasSwitched says whether reverse_proxy's upstream has answered 101.
func hasSwitched(r *http.Request) bool {
	repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return false
	}
	status, _ := repl.Get("http.reverse_proxy.status_code")
	return status == http.StatusSwitchingProtocols
}

// requestContext is the context of a request that is a task: the task's while
// the handlers after this one have it, then the client's again. The request
// itself is not written to a second time: who still sends its body upstream
// reads it.
type requestContext struct {
	client, task context.Context
	exchange     *exchange // nil if the request was not claimed
	over         atomic.Bool
}

func (c *requestContext) current() context.Context {
	if c.over.Load() {
		return c.client
	}
	return c.task
}

func (c *requestContext) Deadline() (time.Time, bool) { return c.current().Deadline() }
func (c *requestContext) Done() <-chan struct{}       { return c.current().Done() }
func (c *requestContext) Err() error                  { return c.current().Err() }

func (c *requestContext) Value(key any) any {
	if key == (claimedKey{}) && c.exchange != nil {
		return c.exchange
	}
	return c.current().Value(key)
}

// claimedKey finds the exchange of a request that is a task.
type claimedKey struct{}

// handlerContext is the context of the handlers after this one. If a queue is
// among them it finds the task there, and the client's own context.
func (x *exchange) handlerContext(client context.Context) context.Context {
	if !x.h.leads.Load() {
		return x.ctx
	}
	t := newTicket(x.h)
	t.exchange, t.client = x, client
	return context.WithValue(x.ctx, ticketKey{}, t)
}

// cutOff tells the client of a task that was ended before its endpoint was.
func (x *exchange) cutOff() error {
	if x.capture.hasWritten() {
		// The client must not take the part it has for the whole.
		panic(http.ErrAbortHandler)
	}
	x.capture.discardHeader()
	cause := context.Cause(x.ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return caddyhttp.Error(http.StatusGatewayTimeout, cause)
	}
	return caddyhttp.Error(http.StatusServiceUnavailable, cause)
}

// endpointError says in a sentence that the endpoint gave no answer, and with
// which status Caddy answers for it, if it does. What the error itself says may
// name internal addresses and is left to the log.
func endpointError(err error) (message string, code int) {
	var he caddyhttp.HandlerError
	switch {
	case !errors.As(err, &he) || he.StatusCode == 0:
		return noAnswer, 0
	case he.StatusCode < 500:
		return fmt.Sprintf("the request was refused (%d %s)", he.StatusCode, http.StatusText(he.StatusCode)), he.StatusCode
	default:
		return fmt.Sprintf("%s (%d %s)", noAnswer, he.StatusCode, http.StatusText(he.StatusCode)), he.StatusCode
	}
}

const noAnswer = "the endpoint gave no answer"

// drainTime is how long after the deadline the rest of a response is read that a
// client which does not read has held up.
const drainTime = 10 * time.Second

// reachDeadline ends a task whose deadline has passed. If its client has held up the
// response, the client is cut off first: the endpoint may have finished long ago.
func (x *exchange) reachDeadline() {
	if x.capture.dropStalled() {
		time.AfterFunc(drainTime, x.timeOut) // nothing happens if there is a verdict
		return
	}
	x.timeOut()
}

// timeOut ends a task, whatever its handler does.
func (x *exchange) timeOut() {
	x.settle(verdict{
		status:  task.TimedOut,
		message: fmt.Sprintf("the endpoint did not finish within %v", time.Duration(x.h.Timeout)),
		cut:     context.DeadlineExceeded,
	})
}

// abandon ends a task because the process exits.
func (x *exchange) abandon() {
	x.settle(verdict{status: task.Failed, message: "the gateway was stopped before the endpoint answered", cut: errStopped})
}

// supersede ends the work on a task that is no longer ours: it was cancelled, or
// another gateway has it.
func (x *exchange) supersede() {
	x.h.log.Info("lease lost", zap.String("task_id", x.rec.ID))
	if x.capture.close(true) {
		x.cancel(engine.ErrLost)
		x.capture.discard()
		close(x.recorded)
	}
}

// enqueue hands the task to a queue: its verdict is no longer given here.
func (x *exchange) enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	if !x.capture.close(false) {
		return "", false, engine.ErrLost
	}
	close(x.recorded)
	return x.lease.Enqueue(ctx, rec, body, opts)
}

// dissolve undoes the claim: the request turned out to be no task.
func (x *exchange) dissolve() {
	if x.capture.close(false) {
		close(x.recorded)
	}
	x.store.endLease(x.h.log, x.rec.ID, func(ctx context.Context) error {
		err := x.lease.Release(ctx)
		if err == nil {
			x.h.app.metrics.taskAccepted(-1)
		}
		return err
	})
}

// verdict is how a task ends without a whole response.
type verdict struct {
	status  task.Verdict
	message string // one sentence, for the receiver
	code    int    // of the error that stands for a response; 0 if there is none
	// cut ends the work and what the client gets; nil leaves both as they are.
	cut error
}

// settle gives the verdict, unless there is one.
func (x *exchange) settle(v verdict) {
	if !x.capture.close(v.cut != nil) {
		return
	}
	if v.cut != nil {
		x.cancel(v.cut)
	}
	x.rec.UpstreamStatus, x.failedWith = x.capture.discard(), v.code
	x.record(v.status, v.message, nil, nil)
}

// settleBroken gives the verdict on a response that ended before it was whole,
// unless there is one.
func (x *exchange) settleBroken() {
	message := noAnswer
	if x.capture.begun {
		message = "the endpoint's response broke off"
	}
	x.settle(verdict{status: task.Failed, message: message})
}

// settleResponse gives the verdict on a response that is whole, unless there is
// one.
func (x *exchange) settleResponse() {
	if x.capture.status == http.StatusSwitchingProtocols {
		x.settle(verdict{status: task.Failed, message: noAnswer})
		return
	}
	if !x.capture.close(false) {
		return
	}
	status, result, body := x.capture.result()
	x.rec.UpstreamStatus, x.failedWith = status, status
	if status >= 400 {
		x.record(task.Failed, "", result, body)
	} else {
		x.record(task.Complete, "", result, body)
	}
}

// record puts the verdict into the engine. Only who closed the capture gets
// here.
func (x *exchange) record(status task.Verdict, message string, result *task.Result, body []byte) {
	defer close(x.recorded)
	x.rec.Status, x.rec.Error, x.rec.Result = status, message, result
	x.rec.FinishedAt = time.Now().UTC()
	if x.again != nil && x.again() {
		return
	}
	x.rec.ForgetRequest()
	traceTask(x.ctx, &x.rec)
	x.h.app.metrics.taskEnded(&x.rec)
	x.store.endLease(x.h.log, x.rec.ID, func(ctx context.Context) error { return x.settleOnce(ctx, body) })
}

// settleOnce makes one attempt to store the verdict.
func (x *exchange) settleOnce(ctx context.Context, body []byte) error {
	rec := x.rec // an attempt that failed may have changed it
	if rec.Result == nil {
		return x.lease.Settle(ctx, &rec, nil)
	}
	result := *rec.Result
	rec.Result = &result
	return x.lease.Settle(ctx, &rec, bytes.NewReader(body))
}
