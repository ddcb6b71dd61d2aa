// Package task defines the data of the gateway: a task, its verdict, its result, its
// callback and the attempts to deliver it. It contains only the behaviour of this data
// and imports only the standard library, so that every other package can use it.
package task

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// Verdict is how a task ended. It is decided once: the first verdict is final.
type Verdict string

const (
	// Complete means that the endpoint answered with a status below 400.
	Complete Verdict = "COMPLETE"
	// Failed means that the endpoint answered with 400 or above or not at all, that the
	// task was canceled, or that the gateway that ran it died.
	Failed Verdict = "FAILED"
	// TimedOut means that the deadline passed before the response was complete.
	TimedOut Verdict = "TIMEOUT"
)

// State is the position of a task in its lifecycle. The engine keeps it outside the
// record, and sets it when it reads the task.
type State string

const (
	// Queued means that the task waits for a worker. A claim moves it to Running.
	Queued State = "queued"
	// Running means that the endpoint processes the task. The verdict moves it to
	// Delivering or Done; lease expiry can also move it back to Queued.
	Running State = "running"
	// Delivering means that the task has its verdict. Its callback is in flight, or
	// waits for its host or for the next attempt.
	Delivering State = "delivering"
	// Done means that the task has ended and its callback, if it has one, was accepted.
	Done State = "done"
	// Dead means that the task has ended and its callback was given up. The callback
	// can be redelivered.
	Dead State = "dead"
)

// Task is the task document. It is the same on a queue's path, in the dashboard, in the
// admin endpoint and on the command line. Times are UTC.
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
	// Response is the beginning of the receiver's answer, at most 1 KiB.
	Response string `json:"response,omitempty"`
}

// Callback describes where the result of a task is posted, and in which form. It is
// fixed when the task is accepted: later changes of the configuration do not affect it.
type Callback struct {
	URL string `json:"url"`
	// Trusted marks the operator's own URL, which may use private addresses and any
	// port.
	Trusted      bool        `json:"trusted,omitempty"`
	Format       string      `json:"format,omitempty"`
	TaskHeader   string      `json:"task_header,omitempty"`
	StatusHeader string      `json:"status_header,omitempty"`
	Header       [][2]string `json:"header,omitempty"`
	// Profile names the profile of the callback. It is empty for the gateway's own
	// contract.
	Profile string `json:"profile,omitempty"`
	// Function is the name of the endpoint in the profile openfaas.
	Function string `json:"function,omitempty"`
	// MaxResult is the largest result that is posted whole, in bytes.
	MaxResult   int64  `json:"max_result,omitempty"`
	Traceparent string `json:"traceparent,omitempty"`
	// Link is set if a larger result is kept whole and posted as a link.
	Link *Link `json:"link,omitempty"`
	// KeyFor is the value from which the signing keys are derived, one from each
	// secret. If it is nil, the secrets themselves sign.
	KeyFor *string `json:"key_for,omitempty"`
}

// Link configures the links to results that are too large to be posted.
type Link struct {
	// URL is that of the `task_status` handler, which a link begins with.
	URL string `json:"url"`
	// MaxKept is the largest result that is kept whole, in bytes.
	MaxKept int64 `json:"max_kept"`
	// Valid is how long a link is valid after it was posted.
	Valid time.Duration `json:"valid"`
}

// Result describes the endpoint's response as it was captured. The body is stored
// beside the record.
type Result struct {
	ContentType     string `json:"content_type,omitempty"`
	ContentEncoding string `json:"content_encoding,omitempty"`
	// Size is the length of the whole body in bytes. It is larger than the captured
	// body if that was truncated.
	Size int64 `json:"size,omitempty"`
	// Kept is the length of the captured body. The engine sets it.
	Kept int64 `json:"kept,omitempty"`
	// Header is the response's whole header. It is set only for a queue's task, whose
	// result can be fetched, and if the callback's profile passes it on.
	Header http.Header `json:"header,omitempty"`
}

// Record is a task as the engine stores it, with everything that is needed to continue
// after a crash. The body of the result, or of the request while the task waits, is
// stored beside it.
type Record struct {
	Task
	// Tries is how many attempts were made. It is more than len(Attempts) if old
	// attempts were dropped. A manual redelivery resets it.
	Tries int `json:"tries,omitempty"`
	// Redelivered has the times of the last manual redeliveries.
	Redelivered []time.Time `json:"redelivered,omitempty"`
	// Span is the span of the request that created the task, as a traceparent. It is
	// empty if the request was not traced here.
	Span string `json:"span,omitempty"`
	// Route names the directive that accepted the task, for metrics.
	Route    string    `json:"route,omitempty"`
	Callback *Callback `json:"callback,omitempty"`
	// Result is nil if there was no response. Then Error says why.
	Result *Result `json:"result,omitempty"`
	// Version changes with every transition. The engine sets it. It is not stored in
	// the record.
	Version uint64 `json:"-"`
	// CallbackDomain is the registrable domain or network of a URL that a request
	// named, for quotas. It is empty for the operator's own URL.
	CallbackDomain string `json:"callback_domain,omitempty"`
	// Request is the request that a queue's task runs. It is nil for a waiting client's
	// task.
	Request *Request `json:"request,omitempty"`
	// Poll is set once the endpoint has accepted the request of a queue's task to answer
	// it later. Then a run of the task is a poll.
	Poll *Poll `json:"poll,omitempty"`
	// Starts is how often a queue's task was started.
	Starts int `json:"starts,omitempty"`
	// NotBefore is the earliest start of a queue's task. It is zero if the client asked
	// for no delay.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Timeout bounds one run of a queue's task.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Schedule identifies the schedule that created the task. It is empty if none did.
	Schedule string `json:"schedule,omitempty"`
	// RequestMethod, RequestPath (without the query) and RequestSize (of the body, in
	// bytes) describe a waiting client's request. A queue's task has them in Request.
	RequestMethod string `json:"request_method,omitempty"`
	RequestPath   string `json:"request_path,omitempty"`
	RequestSize   int64  `json:"request_size,omitempty"`
	// Traces are the traces of the last attempts. Clients do not see them. The list is
	// replaced as a whole, so copies of a record may share it.
	Traces []Trace `json:"traces,omitempty"`
}

// Trace is what operators see of an attempt in addition to [Attempt].
type Trace struct {
	At time.Time `json:"at"` // of the attempt
	// RemoteAddr is the address and port to which the attempt connected.
	RemoteAddr string `json:"remote_addr,omitempty"`
	// The parts of the duration, in milliseconds. DNS, Connect and TLS are missing if
	// the connection was reused. FirstByte is the time from the connection to the first
	// byte of the answer.
	DNS       float64 `json:"dns_ms,omitempty"`
	Connect   float64 `json:"connect_ms,omitempty"`
	TLS       float64 `json:"tls_ms,omitempty"`
	FirstByte float64 `json:"first_byte_ms,omitempty"`
	// Sent and Received are headers, sorted by name. Secrets are masked.
	Sent     [][2]string `json:"request_headers,omitempty"`
	Received [][2]string `json:"response_headers,omitempty"`
}

// Request is a request that was accepted into a queue, as it was before the queue's
// block. Its body is stored beside the record.
type Request struct {
	Method     string            `json:"method"`
	URI        string            `json:"uri"`           // as the client sent it
	Path       string            `json:"path,omitzero"` // path and query after rewrites, if they differ
	Proto      string            `json:"proto,omitempty"`
	Host       string            `json:"host,omitempty"`
	Header     http.Header       `json:"header,omitempty"`
	RemoteAddr string            `json:"remote_addr,omitempty"`
	TLS        bool              `json:"tls,omitempty"`
	Size       int64             `json:"size,omitempty"` // of the body, in bytes
	Vars       map[string]string `json:"vars,omitempty"`
}

// Poll is the state of a task whose endpoint answers later and is polled for the answer.
type Poll struct {
	// StartedAt is when the request was sent. The task's timeout counts from then.
	StartedAt time.Time `json:"started_at"`
	// URI and Host are those of the next poll.
	URI  string `json:"uri"`
	Host string `json:"host,omitempty"`
	// Interval is the last wait between polls that the gateway chose. It is zero before
	// the first one.
	Interval time.Duration `json:"interval,omitempty"`
	// Result means that the next poll gets the task's result, which is not judged.
	Result bool `json:"result,omitempty"`
}

// BlockURI returns the path and query with which the queue's block gets the request.
func (r *Request) BlockURI() string {
	if r.Path != "" {
		return r.Path
	}
	return r.URI
}

// NextRequest returns the request of the task's next run: the one that was accepted, or a
// poll. The task has a request.
func (r *Record) NextRequest() *Request {
	if r.Poll == nil {
		return r.Request
	}
	request := *r.Request
	request.Method, request.URI, request.Path, request.Host, request.Size = http.MethodGet, r.Poll.URI, "", r.Poll.Host, 0
	return &request
}

// Elapsed returns how much of the task's timeout has passed before its next run.
func (r *Record) Elapsed(now time.Time) time.Duration {
	if r.Poll == nil {
		return 0
	}
	return now.Sub(r.Poll.StartedAt)
}

// Limits of what a record keeps. A task can be redelivered manually again and again,
// and its record must fit in a message.
const (
	maxAttemptsKept  = 50
	maxResponsesKept = 12 // the number of attempts of the default retry schedule
)

// AddAttempt appends an attempt to the record, and drops the oldest if there are too
// many. Only the last maxResponsesKept attempts keep their responses.
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

// AddTrace adds the trace of the last attempt, and drops the oldest if there are too
// many.
func (r *Record) AddTrace(t Trace) {
	kept := r.Traces[max(0, len(r.Traces)-maxResponsesKept+1):]
	r.Traces = append(slices.Clone(kept), t)
}

// TraceOf returns the trace of an attempt. ok is false if the trace is not kept.
func (r *Record) TraceOf(a Attempt) (t Trace, ok bool) {
	i := slices.IndexFunc(r.Traces, func(t Trace) bool { return t.At.Equal(a.At) })
	if i < 0 {
		return Trace{}, false
	}
	return r.Traces[i], true
}

// Line returns the method and the path, without the query, of the request that created
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

// LastAttempt returns the latest attempt, and the zero value if there was none.
func (r *Record) LastAttempt() Attempt {
	if len(r.Attempts) == 0 {
		return Attempt{}
	}
	return r.Attempts[len(r.Attempts)-1]
}

// ErrorHolderDied is the error of a task if the gateway that ran it died before the
// verdict.
const ErrorHolderDied = "the gateway that held the task stopped before the endpoint answered"

// maxRedelivered is how many manual redeliveries a record keeps.
const maxRedelivered = 10

// Redeliver starts the attempts again, for a manual redelivery at the given time. The
// record keeps the attempts that were made so far.
func (r *Record) Redeliver(at time.Time) {
	r.Tries, r.NextAttemptAt, r.DeliveredAt, r.State = 0, time.Time{}, time.Time{}, ""
	r.Redelivered = append(r.Redelivered[max(0, len(r.Redelivered)-maxRedelivered+1):], at)
}

// DropRequest drops the parts of the request that are not needed after the verdict:
// headers and locations contain credentials, and the record of the result needs the
// space.
func (r *Record) DropRequest() {
	if r.Poll != nil {
		r.StartedAt, r.Poll = r.Poll.StartedAt, nil
	}
	if r.Request != nil {
		r.Request = &Request{Method: r.Request.Method, URI: r.Request.URI, Size: r.Request.Size}
	}
}

// Ended reports whether the task has its verdict.
func (r *Record) Ended() bool { return r.Status != "" }
