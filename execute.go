package callback

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/header"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/tracing"
)

// execution runs the handlers of one task, and makes sure that the task gets its
// verdict. A client may wait for the response; a queue's task has no client.
type execution struct {
	settings
	app      *App
	log      *zap.Logger
	store    *sharedStore
	lease    engine.Lease
	rec      task.Record
	response capture.Response
	ctx      context.Context // of the handlers; ends with the task, not with the client
	cancel   context.CancelCauseFunc
	// recorded is done when the verdict is stored, or the lease is lost.
	recorded sync.WaitGroup
	// again, if set, may requeue the task instead of recording a verdict, and change the
	// verdict. It gets the body of the result, and reports whether it has requeued.
	again func(body *capture.Copy) bool
	// pending means that again has requeued the task for a poll of its endpoint.
	pending bool
	// failedWith is the status that the task failed with, from the endpoint or from the
	// gateway's own error, or 0.
	failedWith int
	// claimedBy is the handler that made the request a task, or nil if the task runs
	// from a queue. Only a claimed task can be released or handed to a queue.
	claimedBy *Handler
	handed    bool // to a queue, which may have refused it
	left      bool
	// stopping ends when running tasks must be given up.
	stopping context.Context
	request  requestContext
	deadline *time.Timer
	taskID   [1]string // the value of the request's task header
}

// settings are the parts of a configuration that an execution needs.
type settings struct {
	timeout    time.Duration
	elapsed    time.Duration // how much of the timeout has passed before the execution
	taskHeader string        // name of the header with the task's ID
	kept       capture.ResponseOptions
}

// newExecution returns the execution of a task. The handlers get the values of ctx, but
// not its end. client is nil if no client waits.
func (a *App) newExecution(ctx context.Context, s *sharedStore, set settings, rec *task.Record, client http.ResponseWriter) *execution {
	x := &execution{settings: set, app: a, log: a.log, store: s, rec: *rec, stopping: s.quit}
	x.response.Init(client, set.kept)
	x.response.Owner = x
	x.recorded.Add(1)
	x.request.client, x.request.execution = ctx, x
	x.ctx, x.cancel = context.WithCancelCause(context.Background())
	return x
}

// serve runs the handlers on the request, detached from the client. The verdict is
// recorded before the response ends.
func (x *execution) serve(r *http.Request, next caddyhttp.Handler) (err error) {
	defer x.cancel(nil)
	x.request.client = r.Context()
	x.deadline = time.AfterFunc(x.timeout-x.elapsed, x.reachDeadline)
	defer x.deadline.Stop()

	header.LimitConnection(r.Header)
	if x.claimedBy != nil && header.IsUpgrade(r) {
		// If the endpoint agrees, the client can switch to another protocol. Then the
		// request is not a task.
		x.response.OnSwitch = x.release
	} else {
		header.DropUpgrade(r.Header)
	}
	header.Drop(r.Header, x.taskHeader)
	x.taskID[0] = x.rec.ID
	r.Header[http.CanonicalHeaderKey(x.taskHeader)] = x.taskID[:]
	x.response.NameTask(x.taskHeader, x.rec.ID)
	defer func() {
		cause := recover()
		if cause != nil {
			x.settleBroken()
		}
		x.recorded.Wait()
		switch {
		case x.response.Muted() && (cause == nil || cause == http.ErrAbortHandler):
			err = x.cutOff()
		case cause != nil:
			panic(cause) // Caddy's to handle
		}
	}()
	inFlight.add(x)
	defer inFlight.remove(x)
	defer x.request.over.Store(true)
	// The request is changed in place: Caddy's placeholders, such as
	// {http.request.body}, read the request that Caddy prepared, not a copy.
	*r = *r.WithContext(&x.request)
	err = next.ServeHTTP(&x.response, r)
	if err == nil && !x.response.Begun() && hasSwitched(r) {
		err = errSwitched
	}
	switch {
	case err != nil:
		message, code := endpointError(err)
		x.settle(verdict{status: task.Failed, message: message, code: code})
	case x.response.Short():
		x.settleBroken()
	default:
		x.ResponseWhole()
	}
	return err
}

// errSwitched replaces a response 101 to a request that did not ask for another
// protocol. reverse_proxy takes it for its own and writes nothing.
var errSwitched = caddyhttp.Error(http.StatusBadGateway, errors.New("the endpoint switched to a protocol that was not asked for"))

// hasSwitched reports whether reverse_proxy's upstream has answered 101.
func hasSwitched(r *http.Request) bool {
	repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return false
	}
	status, _ := repl.Get("http.reverse_proxy.status_code")
	return status == http.StatusSwitchingProtocols
}

// requestContext is the context of a request that is a task. It has the values of the
// client's context. It ends with the task while the handlers run, and with the client's
// context afterwards. The request is not changed a second time, because a transport that
// still sends the body reads it.
type requestContext struct {
	client    context.Context
	execution *execution
	over      atomic.Bool
}

func (c *requestContext) current() context.Context {
	if c.over.Load() {
		return c.client
	}
	return c.execution.ctx
}

func (c *requestContext) Deadline() (time.Time, bool) { return c.current().Deadline() }
func (c *requestContext) Done() <-chan struct{}       { return c.current().Done() }
func (c *requestContext) Err() error                  { return c.current().Err() }

func (c *requestContext) Value(key any) any {
	if key == (executionKey{}) {
		return c.execution
	}
	if value := c.current().Value(key); value != nil {
		return value
	}
	return c.client.Value(key)
}

// executionKey is the context key of the execution of a request.
type executionKey struct{}

// executionOf returns the execution of a request that is a task, or nil.
func executionOf(r *http.Request) *execution {
	x, _ := r.Context().Value(executionKey{}).(*execution)
	return x
}

// claimOf returns the execution of a request that a callback handler has made a task.
// It returns nil for a running task of a queue, which cannot be released.
func claimOf(r *http.Request) *execution {
	if x := executionOf(r); x != nil && x.claimedBy != nil {
		return x
	}
	return nil
}

// cutOff ends the response to the client of a task that was ended before its handlers.
func (x *execution) cutOff() error {
	if x.response.HasWritten() {
		// The client must not mistake a partial response for a complete one.
		panic(http.ErrAbortHandler)
	}
	x.response.DiscardHeader()
	cause := context.Cause(x.ctx)
	if errors.Is(cause, context.DeadlineExceeded) {
		return caddyhttp.Error(http.StatusGatewayTimeout, cause)
	}
	return caddyhttp.Error(http.StatusServiceUnavailable, cause)
}

// endpointError describes, in a sentence, that the endpoint gave no response, and
// returns the status that Caddy responds with. The error itself may name internal
// addresses, so it is only logged.
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

// drainTime is how long after the deadline the rest of a response is read if a slow
// client has delayed it.
const drainTime = 10 * time.Second

// reachDeadline ends a task whose deadline has passed. If a slow client has delayed the
// response, only the client is cut off: the endpoint may have finished long ago.
func (x *execution) reachDeadline() {
	if x.response.DropStalled() {
		time.AfterFunc(drainTime, x.timeOut) // does nothing if there is a verdict
		return
	}
	x.timeOut()
}

// timeOut ends a task with TIMEOUT, even if its handlers still run.
func (x *execution) timeOut() {
	x.settle(verdict{
		status:  task.TimedOut,
		message: fmt.Sprintf("the endpoint did not finish within %v", x.timeout),
		cut:     context.DeadlineExceeded,
	})
}

// abandon ends a task because the process exits.
func (x *execution) abandon() {
	x.settle(verdict{status: task.Failed, message: "the gateway was stopped before the endpoint answered", cut: errStopped})
}

// supersede ends the execution of a task after its lease was lost: the task was
// canceled, or another gateway runs it.
func (x *execution) supersede() {
	x.log.Info("lease lost", zap.String("task_id", x.rec.ID))
	if x.response.Close(true) {
		x.cancel(engine.ErrLost)
		x.response.Discard()
		x.recorded.Done()
	}
}

// enqueue hands the task to a queue, which decides its verdict from now on.
func (x *execution) enqueue(ctx context.Context, rec *task.Record, body io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	if !x.response.Close(false) {
		return "", false, engine.ErrLost
	}
	x.handed = true
	x.recorded.Done()
	id, created, err := x.lease.Enqueue(ctx, rec, body, opts)
	if err == nil {
		x.leave()
	}
	return id, created, err
}

// leave makes the request a plain one again: it has the client's context, no deadline,
// and a response without the task's ID.
func (x *execution) leave() {
	x.left = true
	x.deadline.Stop()
	x.request.over.Store(true)
	x.response.NameTask("", "")
}

// release undoes the claim of a request that is not a task after all. x may be nil, and
// release may be called again.
func (x *execution) release() {
	if x == nil || x.left {
		return
	}
	if !x.handed {
		if !x.response.Close(false) {
			return // it has a verdict, so its callback is sent
		}
		x.recorded.Done()
	}
	x.leave()
	x.store.endLease(x.log, x.rec.ID, func(ctx context.Context) error {
		err := x.lease.Release(ctx)
		if err == nil {
			x.app.metrics.TaskAccepted(-1)
		}
		return err
	})
}

// verdict is the verdict on a task without a complete response.
type verdict struct {
	status  task.Verdict
	message string // one sentence, for the receiver
	code    int    // status of the error that replaces the response, or 0
	// cut ends the handlers and the client's response. Nil leaves both running.
	cut error
}

// settle decides the verdict, unless there is one.
func (x *execution) settle(v verdict) {
	if !x.response.Close(v.cut != nil) {
		return
	}
	if v.cut != nil {
		x.cancel(v.cut)
	}
	x.rec.UpstreamStatus, x.failedWith = x.response.Discard(), v.code
	x.record(v.status, v.message, nil, nil)
}

// settleBroken decides the verdict on an incomplete response, unless there is one.
func (x *execution) settleBroken() {
	message := noAnswer
	if x.response.Begun() {
		message = "the endpoint's response was incomplete"
	}
	x.settle(verdict{status: task.Failed, message: message})
}

// ResponseWhole decides the verdict on a complete response, unless there is one. It
// implements [capture.Owner].
func (x *execution) ResponseWhole() {
	if x.response.Status() == http.StatusSwitchingProtocols {
		x.settle(verdict{status: task.Failed, message: noAnswer})
		return
	}
	if !x.response.Close(false) {
		return
	}
	status, result, body := x.response.Result()
	x.rec.UpstreamStatus, x.failedWith = status, status
	if status >= 400 {
		x.record(task.Failed, "", result, body)
	} else {
		x.record(task.Complete, "", result, body)
	}
}

// record stores the verdict. Only the caller that closed the copy of the response gets
// here.
func (x *execution) record(status task.Verdict, message string, result *task.Result, body *capture.Copy) {
	defer x.recorded.Done()
	x.rec.Status, x.rec.Error, x.rec.Result = status, message, result
	x.rec.FinishedAt = time.Now().UTC()
	if x.again != nil && x.again(body) {
		body.Close()
		return
	}
	x.rec.DropRequest()
	tracing.RecordTask(&x.request, &x.rec)
	x.app.metrics.TaskEnded(&x.rec)
	timeout := recordTimeout + time.Duration(body.Size()/slowestDisk)*time.Second
	x.store.endLeaseWithin(timeout, x.log, x.rec.ID, func(ctx context.Context) error {
		err := x.settleOnce(ctx, body)
		if !engine.IsTemporary(err) {
			body.Close()
		}
		return err
	})
}

// slowestDisk is the speed, in bytes a second, that storing a large result may need
// before it counts as failed.
const slowestDisk = 8 << 20

// settleOnce tries once to store the verdict.
func (x *execution) settleOnce(ctx context.Context, body *capture.Copy) error {
	if x.rec.Result == nil {
		return x.lease.Settle(ctx, &x.rec, nil)
	}
	return x.lease.Settle(ctx, &x.rec, body.Reader())
}
