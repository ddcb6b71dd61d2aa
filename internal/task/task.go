// Package task names the things the gateway works on: a task, its verdict,
// the result it came to, the callback it owes and the attempts made to
// deliver it. It holds no behaviour beyond what these are made of and imports
// nothing but the standard library, so that every other package can speak
// in its terms.
package task

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// Verdict is how a task ended. It is given once; the first one stands.
type Verdict string

const (
	// Complete: the endpoint answered with a status below 400.
	Complete Verdict = "COMPLETE"
	// Failed: the endpoint answered 400 or above or not at all, the task was
	// canceled, or the gateway that held it died.
	Failed Verdict = "FAILED"
	// TimedOut: the deadline passed before the response was whole.
	TimedOut Verdict = "TIMEOUT"
)

// State is where a task stands. The engine derives it from the subject that
// holds the task; it is stored nowhere else.
type State string

const (
	// Queued: accepted, waiting for a worker. A claim moves it to Running.
	Queued State = "queued"
	// Running: the endpoint is at work. Settling, or lease expiry,
	// moves it to Delivering, Done, or back to Queued.
	Running State = "running"
	// Delivering: it has its verdict; the callback is in flight, waiting for
	// its host's turn or for its next attempt.
	Delivering State = "delivering"
	// Done: ended, and its callback (if it had one) was accepted.
	Done State = "done"
	// Dead: ended, and its callback was given up. It can be redelivered.
	Dead State = "dead"
)

// Task is the task document: the same on a queue's path, the dashboard, the
// admin endpoint and the command line. Times are UTC.
type Task struct {
	ID             string    `json:"task_id"`
	Queue          string    `json:"queue,omitempty"`
	State          State     `json:"state,omitempty"`
	Status         Verdict   `json:"status,omitempty"`
	UpstreamStatus int       `json:"upstream_status,omitempty"`
	Error          string    `json:"error,omitempty"`
	CreatedAt      time.Time `json:"created_at"`
	StartedAt      time.Time `json:"started_at,omitzero"`
	FinishedAt     time.Time `json:"finished_at,omitzero"`
	DeliveredAt    time.Time `json:"delivered_at,omitzero"`
	CallbackHost   string    `json:"callback_host,omitempty"`
	NextAttemptAt  time.Time `json:"next_attempt_at,omitzero"`
	Attempts       []Attempt `json:"attempts,omitempty"`
}

// Attempt is one try to deliver a callback.
type Attempt struct {
	At         time.Time `json:"at"`
	StatusCode int       `json:"status_code,omitempty"`
	DurationMS int64     `json:"duration_ms"`
	Error      string    `json:"error,omitempty"`
	// Response is the beginning of what the receiver answered, at most 1 KiB.
	Response string `json:"response,omitempty"`
}

// Callback is what a task owes: where its result goes and in which form.
// It is fixed when the task is accepted; later changes of the configuration
// do not touch it.
type Callback struct {
	URL string `json:"url"`
	// Trusted marks the operator's own URL, which may point at private
	// addresses and any port.
	Trusted      bool        `json:"trusted,omitempty"`
	Format       string      `json:"format,omitempty"`
	TaskHeader   string      `json:"task_header,omitempty"`
	StatusHeader string      `json:"status_header,omitempty"`
	Header       [][2]string `json:"header,omitempty"`
	// Profile names the service as which the callback is made; "" for our own.
	Profile string `json:"profile,omitempty"`
	// Function is what the profile openfaas calls the endpoint.
	Function string `json:"function,omitempty"`
	// MaxResult is the largest result posted whole, in bytes.
	MaxResult   int64  `json:"max_result,omitempty"`
	Traceparent string `json:"traceparent,omitempty"`
	// KeyFor is the value from which, with each secret, the keys are derived that sign
	// the callback; nil: the secrets sign.
	KeyFor *string `json:"key_for,omitempty"`
}

// Result describes the endpoint's response as it was captured. The body
// itself travels beside the record.
type Result struct {
	ContentType     string `json:"content_type,omitempty"`
	ContentEncoding string `json:"content_encoding,omitempty"`
	// Size is the length of the whole body in bytes; larger than the captured
	// body if that was cut.
	Size int64 `json:"size,omitempty"`
	// Kept is the length of the body that was captured. Only of a queue's task.
	Kept int64 `json:"kept,omitempty"`
	// Header is the response's whole header. Only of a queue's task, whose
	// result can be fetched, and where the callback's profile passes it on.
	Header http.Header `json:"header,omitempty"`
}

// Record is a task with all that is needed to go on with it after a crash:
// what the engine stores. The body of the result, or of the request while it
// waits, is stored beside it.
type Record struct {
	Task
	// Tries is how many attempts were made; more than len(Attempts) if some were
	// forgotten. A redelivery by hand starts it anew.
	Tries int `json:"tries,omitempty"`
	// Redelivered is when redeliveries by hand were asked for, the last few.
	Redelivered []time.Time `json:"redelivered,omitempty"`
	// Span is the span of the request that made the task, as a traceparent; empty
	// if it was not traced here.
	Span string `json:"span,omitempty"`
	// Route names the directive that accepted the task, for metrics.
	Route    string    `json:"route,omitempty"`
	Callback *Callback `json:"callback,omitempty"`
	// Result is nil if there was no answer: then Error says why.
	Result *Result `json:"result,omitempty"`
	// Version changes with every transition. Set by the engine, not stored in the
	// record.
	Version uint64 `json:"-"`
	// CallbackDomain is the registrable domain or network of a URL that a request
	// named, for quotas; empty for the operator's own URL.
	CallbackDomain string `json:"callback_domain,omitempty"`
	// Request is what a queue's task runs; nil for a waiting client's.
	Request *Request `json:"request,omitempty"`
	// Starts is how often a queue's task was begun.
	Starts int `json:"starts,omitempty"`
	// NotBefore is when the client lets a queue's task start; zero if it asked for no
	// delay.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Timeout bounds one run of a queue's task.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Schedule identifies the schedule that made the task; empty if none did.
	Schedule string `json:"schedule,omitempty"`
	// RequestMethod, RequestPath (without the query) and RequestSize (of the body,
	// in bytes) are of a waiting client's request; a queue's has them in Request.
	RequestMethod string `json:"request_method,omitempty"`
	RequestPath   string `json:"request_path,omitempty"`
	RequestSize   int64  `json:"request_size,omitempty"`
	// Traces are of the last attempts. Clients do not see them. The list is replaced
	// as a whole, so copies of a record may share it.
	Traces []Trace `json:"traces,omitempty"`
}

// Trace is what operators see of an attempt beside [Attempt].
type Trace struct {
	At time.Time `json:"at"` // of the attempt
	// RemoteAddr is the address and port that it connected to.
	RemoteAddr string `json:"remote_addr,omitempty"`
	// The parts of its duration, in milliseconds. Those of connecting are missing if
	// a connection was used again. FirstByte is from the connection to the first
	// byte of the answer.
	DNS       float64 `json:"dns_ms,omitempty"`
	Connect   float64 `json:"connect_ms,omitempty"`
	TLS       float64 `json:"tls_ms,omitempty"`
	FirstByte float64 `json:"first_byte_ms,omitempty"`
	// Sent and Received are headers, sorted by name. Secrets are masked.
	Sent     [][2]string `json:"request_headers,omitempty"`
	Received [][2]string `json:"response_headers,omitempty"`
}

// Request is a request that was accepted into a queue, as it stood before the
// queue's block. Its body is stored beside the record.
type Request struct {
	Method     string            `json:"method"`
	URI        string            `json:"uri"`           // as the client wrote it
	Path       string            `json:"path,omitzero"` // path and query after rewrites, if they differ
	Proto      string            `json:"proto,omitempty"`
	Host       string            `json:"host,omitempty"`
	Header     http.Header       `json:"header,omitempty"`
	RemoteAddr string            `json:"remote_addr,omitempty"`
	TLS        bool              `json:"tls,omitempty"`
	Size       int64             `json:"size,omitempty"` // of the body, in bytes
	Vars       map[string]string `json:"vars,omitempty"`
}

// What is kept of a task that is redelivered by hand again and again: its record
// must fit in a message.
const (
	maxAttemptsKept  = 50
	maxResponsesKept = 12 // as many as the default schedule makes attempts
)

// AddAttempt appends a to the record, forgetting the oldest when there are too
// many to keep.
func (r *Record) AddAttempt(a Attempt) {
	r.Tries++
	if len(r.Attempts) >= maxAttemptsKept {
		r.Attempts = append(r.Attempts[:0], r.Attempts[1:]...)
	}
	r.Attempts = append(r.Attempts, a)
	if n := len(r.Attempts) - maxResponsesKept; n > 0 {
		r.Attempts[n-1].Response = ""
	}
}

// AddTrace adds the trace of the attempt that was added last, and drops the oldest
// if there are too many to keep.
func (r *Record) AddTrace(t Trace) {
	kept := r.Traces[max(0, len(r.Traces)-maxResponsesKept+1):]
	r.Traces = append(slices.Clone(kept), t)
}

// TraceOf returns the trace of an attempt; ok is false if it is not kept.
func (r *Record) TraceOf(a Attempt) (t Trace, ok bool) {
	i := slices.IndexFunc(r.Traces, func(t Trace) bool { return t.At.Equal(a.At) })
	if i < 0 {
		return Trace{}, false
	}
	return r.Traces[i], true
}

// Line returns the method and the path, without its query, of the request that made
// the task, and the size of its body in bytes.
func (r *Record) Line() (method, path string, size int64) {
	if r.Request == nil {
		return r.RequestMethod, r.RequestPath, r.RequestSize
	}
	path, _, _ = strings.Cut(r.Request.URI, "?")
	return r.Request.Method, path, r.Request.Size
}

// WaitsSince returns when a queue's task began to wait for a worker: when it was
// accepted, or when its delay ended.
func (r *Record) WaitsSince() time.Time {
	if r.NotBefore.After(r.CreatedAt) {
		return r.NotBefore
	}
	return r.CreatedAt
}

// LastAttempt returns the latest attempt, the zero value if there was none.
func (r *Record) LastAttempt() Attempt {
	if len(r.Attempts) == 0 {
		return Attempt{}
	}
	return r.Attempts[len(r.Attempts)-1]
}

// ErrorHolderDied is the error of a task whose holder died before its verdict.
const ErrorHolderDied = "the gateway that held the task stopped before the endpoint answered"

// maxRedelivered is how many redeliveries by hand are remembered.
const maxRedelivered = 10

// Redeliver starts the attempts anew, at the given time. Those made so far stay.
func (r *Record) Redeliver(at time.Time) {
	r.Tries, r.NextAttemptAt, r.DeliveredAt, r.State = 0, time.Time{}, time.Time{}, ""
	r.Redelivered = append(r.Redelivered[max(0, len(r.Redelivered)-maxRedelivered+1):], at)
}

// ForgetRequest drops what is of no use once the task has its verdict: headers
// hold credentials, and the record of the result needs the room.
func (r *Record) ForgetRequest() {
	if r.Request != nil {
		r.Request = &Request{Method: r.Request.Method, URI: r.Request.URI, Size: r.Request.Size}
	}
}

// Ended says whether the task has its verdict.
func (r *Record) Ended() bool { return r.Status != "" }
