package callback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// mayBeTask reports whether requests with this method can be tasks.
func mayBeTask(r *http.Request) bool {
	switch r.Method {
	case http.MethodHead, http.MethodOptions, http.MethodConnect:
		return false
	}
	return true
}

// release frees the stored part of a request's body, if any, once its handlers have
// returned. After an error, handle_errors may still read it, until the client's request
// ends.
func release(client context.Context, body *capture.Body, err error) {
	switch {
	case body == nil:
	case err == nil:
		body.Release()
	default:
		context.AfterFunc(client, body.Release)
	}
}

// inFlight are the tasks whose handlers run in this process.
var inFlight flights

type flights struct{ tasks sync.Map } // *execution, by task ID

// add registers a task until remove is called.
func (f *flights) add(x *execution) (remove func()) {
	f.tasks.Store(x.rec.ID, x)
	return func() { f.tasks.Delete(x.rec.ID) }
}

// headerOf returns the name of the header with the task's ID if a task's own handlers
// made the request: httpInclude of Caddy's templates copies the header of the request
// that is being answered. Clients cannot pretend that, because the server sets the
// local address of their connections.
func (f *flights) headerOf(r *http.Request) (header string, ok bool) {
	if r.Context().Value(http.LocalAddrContextKey) != nil {
		return "", false
	}
	for name, values := range r.Header {
		if len(values) != 1 || len(values[0]) != taskIDLength {
			continue
		}
		x, _ := f.tasks.Load(values[0])
		if x, ok := x.(*execution); ok && strings.EqualFold(name, x.taskHeader) {
			return x.taskHeader, true
		}
	}
	return "", false
}

// taskIDLength is the length of a task's ID in bytes.
const taskIDLength = 36

// storedRequest returns the parts of a request that are stored.
func storedRequest(r *http.Request) *task.Request {
	stored := &task.Request{
		Method: r.Method, URI: r.RequestURI, Proto: r.Proto, Host: r.Host,
		Header: r.Header.Clone(), RemoteAddr: r.RemoteAddr, TLS: r.TLS != nil,
	}
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	for name, value := range vars {
		if name == caddyhttp.ClientIPVarKey || name == caddyhttp.TrustedProxyVarKey {
			continue // derived again from the address and the headers
		}
		switch value.(type) {
		case string, bool, int, int64, float64: // the types of the vars directive
			if stored.Vars == nil {
				stored.Vars = make(map[string]string)
			}
			stored.Vars[name] = fmt.Sprint(value)
		}
	}
	return stored
}

// boundedBody reads the body of a request up to a limit, and hashes it.
type boundedBody struct {
	r    io.Reader
	left int64
	hash hash.Hash // nil if not needed

	limit int64
	err   error // why the body could not be read to its end
}

var errBodyTooLarge = errors.New("the body is too large")

func newBoundedBody(r io.Reader, limit int64) *boundedBody {
	if r == nil {
		r = http.NoBody
	}
	return &boundedBody{r: r, left: limit, limit: limit}
}

// Read implements [io.Reader].
func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		b.err = errBodyTooLarge
		return 0, b.err
	}
	if b.hash != nil {
		b.hash.Write(p[:n])
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// problem returns the response to a request whose body could not be read.
func (b *boundedBody) problem() *problem {
	var bounded *http.MaxBytesError
	switch {
	case errors.As(b.err, &bounded): // from request_body in front of the queue
		return &problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("the request's body is limited to %d bytes", bounded.Limit)}
	case errors.Is(b.err, errBodyTooLarge):
		return &problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("the request's body is limited to %d bytes", b.limit)}
	}
	return &problem{http.StatusBadRequest, "the request's body is incomplete"}
}

// problem is the response to a request that cannot be accepted: the status and detail
// of an RFC 9457 document.
type problem struct {
	status int
	detail string
}

func (p *problem) Error() string { return p.detail }

// retryAfter is the Retry-After, in seconds, while tasks cannot be stored.
const retryAfter = 5

// writeProblem writes the response to a request that cannot be accepted, as an RFC 9457
// document.
func writeProblem(w http.ResponseWriter, err error) error {
	var p *problem
	if !errors.As(err, &p) {
		return err
	}
	switch p.status {
	case http.StatusRequestTimeout:
		w.Header().Set("Connection", "close") // do not wait for the rest of the body
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.status)
	return json.NewEncoder(w).Encode(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(p.status), p.status, p.detail})
}

// unavailable writes the response to a request that the store cannot serve.
func unavailable(w http.ResponseWriter, log *zap.Logger, err error) error {
	log.Warn("request refused", zap.Error(err))
	if errors.Is(err, engine.ErrQuota) {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		return writeProblem(w, &problem{http.StatusTooManyRequests, "too many callbacks wait for this destination"})
	}
	return writeProblem(w, &problem{http.StatusServiceUnavailable, "callbacks are not available at the moment"})
}

// problemOf converts a *capture.Refusal to a *problem.
func problemOf(err error) error {
	if err == nil {
		return nil
	}
	var refusal *capture.Refusal
	if errors.As(err, &refusal) {
		return &problem{refusal.Status, refusal.Detail}
	}
	return err
}
