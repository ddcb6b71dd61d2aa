// Package taskapi answers what clients ask about their tasks over HTTP: the task
// document, the result, a cancellation, and the wait for a change.
package taskapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/problem"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Lookup is a request about a task: <path>/<id> or <path>/<id>/result.
type Lookup struct {
	ID     string
	Result bool
}

// ParseLookup parses a request about a task. It reports false for other requests.
func ParseLookup(method, path string) (Lookup, bool) {
	path = strings.TrimSuffix(path, "/")
	var l Lookup
	switch method {
	case http.MethodGet, http.MethodHead:
		path, l.Result = strings.CutSuffix(path, "/result")
	case http.MethodDelete:
	default:
		return Lookup{}, false
	}
	last := path[strings.LastIndexByte(path, '/')+1:]
	id, err := uuid.Parse(last)
	if err != nil || len(last) != len(id.String()) {
		return Lookup{}, false
	}
	l.ID = id.String()
	return l, true
}

// Collection answers requests about tasks. A task's ID is a capability: every client that
// knows it may see and cancel the task. Its methods may be called from several goroutines
// at once. All fields but Queue are required.
type Collection struct {
	// Queue is the queue of the tasks. If it is empty, the collection has the tasks of all
	// queues and of waiting clients.
	Queue string
	// Open returns the engine, which stays open until leave is called.
	Open func() (e engine.Engine, leave func(), err error)
	// Canceled is called after a client has canceled a task.
	Canceled func(ctx context.Context, e engine.Engine, id string)
	// Waits ends when clients must stop waiting for their tasks.
	Waits context.Context
	Log   *zap.Logger
}

// Serve answers a request about a task. Tasks can be read while the store is full.
func (c *Collection) Serve(w http.ResponseWriter, r *http.Request, l Lookup) error {
	w.Header().Set("Cache-Control", "no-store") // for a 404 too: the task may be stored later
	e, leave, err := c.Open()
	if err != nil {
		return problem.WriteUnavailable(w, c.Log, err)
	}
	defer leave()
	rec, err := e.Get(r.Context(), l.ID)
	switch {
	case errors.Is(err, engine.ErrNotFound), err == nil && c.Queue != "" && rec.Queue != c.Queue:
		return problem.Write(w, c.NotFound())
	case err != nil:
		return problem.WriteUnavailable(w, c.Log, err)
	case r.Method == http.MethodDelete:
		return c.cancel(w, r, e, l.ID)
	}
	if rec, err = c.await(w, r, e, rec, l); err != nil {
		return problem.Write(w, c.NotFound())
	}
	if l.Result {
		return c.writeResult(w, r, e, rec)
	}
	return writeDocument(w, r, rec)
}

// NotFound returns the problem for a task that is not in the collection.
func (c *Collection) NotFound() *problem.Problem {
	if c.Queue == "" {
		return problem.New(http.StatusNotFound, "no such task")
	}
	return problem.New(http.StatusNotFound, "no such task in this queue")
}

// publicTask returns the task document for clients. It leaves out the responses of
// receivers. For the operator's own URL, it also leaves out the host and the errors,
// which may name internal addresses.
func publicTask(rec *task.Record) task.Task {
	doc := rec.Task
	if rec.Callback != nil && rec.Callback.Trusted {
		doc.CallbackHost = ""
	}
	doc.Attempts = append([]task.Attempt(nil), doc.Attempts...)
	for i := range doc.Attempts {
		doc.Attempts[i].Response = ""
		if rec.Callback != nil && rec.Callback.Trusted && doc.Attempts[i].Error != "" {
			doc.Attempts[i].Error = "not delivered"
		}
	}
	return doc
}

func (c *Collection) cancel(w http.ResponseWriter, r *http.Request, e engine.Engine, id string) error {
	err := e.Act(r.Context(), id, engine.Action{Kind: engine.Cancel, Reason: engine.ReasonCanceled})
	switch {
	case errors.Is(err, engine.ErrEnded):
		return problem.Write(w, problem.New(http.StatusConflict, "the task has ended"))
	case errors.Is(err, engine.ErrNotFound):
		return problem.Write(w, c.NotFound())
	case err != nil:
		return problem.WriteUnavailable(w, c.Log, err)
	}
	c.Canceled(r.Context(), e, id)
	return writeJSON(w, http.StatusAccepted, map[string]string{"task_id": id})
}

// statusWithout returns the status of the response for a task without a result: the one
// that a waiting client would have got.
func statusWithout(rec *task.Record) int {
	switch {
	case rec.Status == task.TimedOut:
		return http.StatusGatewayTimeout
	case rec.Error == engine.ReasonCanceled:
		return http.StatusGone
	default:
		return http.StatusBadGateway
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

// writeResult writes the task's result as the endpoint sent it. It decodes content
// codings that the client does not accept.
func (c *Collection) writeResult(w http.ResponseWriter, r *http.Request, e engine.Engine, rec *task.Record) error {
	switch {
	case !rec.Ended():
		setRetryAfter(w.Header(), rec.CreatedAt, rec.NextAttemptAt)
		return problem.Write(w, problem.New(http.StatusConflict, "the task has no result yet: it is "+string(rec.State)))
	case rec.Result == nil:
		return problem.Write(w, problem.New(statusWithout(rec), rec.Error))
	}
	return c.sendResult(w, r, e, rec, rec.UpstreamStatus)
}

// errResultGone is the problem of a result that has been removed.
var errResultGone = problem.New(http.StatusNotFound, "the task's result is no longer kept")

// sendResult writes the task's result with the given status.
func (c *Collection) sendResult(w http.ResponseWriter, r *http.Request, e engine.Engine, rec *task.Record, status int) error {
	stored, err := e.Open(r.Context(), rec.ID, engine.ResultBody)
	if errors.Is(err, engine.ErrNotFound) {
		return problem.Write(w, errResultGone)
	} else if err != nil {
		return problem.WriteUnavailable(w, c.Log, err)
	}
	defer stored.Close()
	h := w.Header()
	c.setResultHeader(h, rec.Result)
	if rec.Result.Size > rec.Result.Kept {
		h.Set("Callback-Truncated", strconv.FormatInt(rec.Result.Size, 10))
	}
	if !hasBody(status) {
		w.WriteHeader(status)
		return nil
	}
	body := acceptable(h, r, rec, stored)
	defer body.Close()
	if _, decoded := body.(*decodedBody); !decoded {
		h.Set("Content-Length", strconv.FormatInt(rec.Result.Kept, 10))
		if status == http.StatusOK && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			c.serveContent(w, r, rec, stored)
			return nil
		}
	}
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := io.Copy(w, body); err != nil {
		c.abort(rec, err)
	}
	return nil
}

// setResultHeader sets the header of a response from a task's result. For tasks of
// waiting clients, a result has only the headers that describe its body.
func (c *Collection) setResultHeader(h http.Header, result *task.Result) {
	for name, values := range result.Header {
		if httpguts.ValidHeaderFieldName(name) { // reverse_proxy keeps a trailer as "Trailer:Name"
			h[name] = values
		}
	}
	// The stored header may be wrong: a body that was too long may have been decoded.
	for name, value := range map[string]string{"Content-Type": result.ContentType, "Content-Encoding": result.ContentEncoding} {
		if h.Del(name); value != "" {
			h.Set(name, value)
		}
	}
	h.Set("Cache-Control", "no-store")
	if c.Queue == "" {
		// The result may come from another site. On this one it must neither run scripts
		// nor set cookies.
		h.Add("Content-Security-Policy", "sandbox")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Del("Set-Cookie")
	}
}

// hasBody reports whether a response with the status can have a body. In HTTP/2, a
// response that cannot have one is malformed if it has a content-length.
func hasBody(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// acceptable returns the result's body as stored if the client accepts its content
// codings, and decoded otherwise. It changes the header accordingly. The body stays
// encoded if a coding is unknown or only the beginning of the body was kept.
func acceptable(h http.Header, r *http.Request, rec *task.Record, stored io.ReadSeekCloser) io.ReadCloser {
	codings := strings.Join(h.Values("Content-Encoding"), ",")
	result := rec.Result
	if codings == "" || result.Kept == 0 || result.Size > result.Kept {
		return stored
	}
	h.Add("Vary", "Accept-Encoding")
	if acceptsCodings(r.Header.Values("Accept-Encoding"), codings) {
		return stored
	}
	limit := int64(capture.MaxDecoded)
	if rec.Callback != nil && rec.Callback.Link != nil {
		limit = max(limit, rec.Callback.Link.MaxKept)
	}
	decoded, ok := newDecodedBody(codings, stored, limit)
	if !ok {
		_, _ = stored.Seek(0, io.SeekStart) // it does no I/O
		return stored
	}
	for _, name := range []string{"Content-Encoding", "Content-Md5", "Content-Digest", "Digest", "Repr-Digest"} {
		h.Del(name)
	}
	if etag := h.Get("Etag"); strings.HasPrefix(etag, `"`) {
		h.Set("Etag", "W/"+etag) // the bytes differ, the meaning does not
	}
	return decoded
}

// acceptsCodings reports whether a client accepts all content codings of a body. Without
// Accept-Encoding, any coding may be sent (RFC 9110, section 12.5.3), but curl and most
// libraries do not decode codings that they did not ask for.
func acceptsCodings(accepted []string, codings string) bool {
	weights := make(map[string]bool) // whether the coding is accepted
	for offer := range strings.SplitSeq(strings.Join(accepted, ","), ",") {
		name, params, _ := strings.Cut(offer, ";")
		weight, _, _ := strings.Cut(params, ";")
		_, q, weighted := strings.Cut(weight, "=")
		value, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
		weights[strings.ToLower(strings.TrimSpace(name))] = !weighted || err == nil && value > 0
	}
	for coding := range strings.SplitSeq(codings, ",") {
		coding = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(coding)), "x-")
		yes, named := weights[coding]
		if !named {
			yes = weights["*"]
		}
		if !yes && coding != "" && coding != "identity" {
			return false
		}
	}
	return true
}

// decodeAhead is how many bytes of a result are decoded before its header is sent. They
// show whether the body really has the coding that its header names.
const decodeAhead = 32 << 10

// decodedBody is a result without its content codings.
type decodedBody struct {
	io.Reader
	decoder io.Closer
}

func (b *decodedBody) Close() error { return b.decoder.Close() }

// newDecodedBody returns a decodedBody of at most limit bytes. It reports false if the
// body does not have the codings.
func newDecodedBody(codings string, stored io.Reader, limit int64) (*decodedBody, bool) {
	decoder, err := form.NewReader(codings, stored)
	if err != nil {
		return nil, false
	}
	ahead, err := io.ReadAll(io.LimitReader(decoder, decodeAhead))
	if err != nil {
		decoder.Close()
		return nil, false
	}
	rest := capture.NewBounded(decoder, limit)
	return &decodedBody{Reader: io.MultiReader(bytes.NewReader(ahead), rest), decoder: decoder}, true
}
