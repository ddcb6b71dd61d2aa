package callback

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// lookup is a request about a task: <path>/<id> or <path>/<id>/result.
type lookup struct {
	id     string
	result bool
}

// lookupOf reads what a request asks about a task, if it does.
func lookupOf(method, path string) (lookup, bool) {
	path = strings.TrimSuffix(path, "/")
	var l lookup
	switch method {
	case http.MethodGet, http.MethodHead:
		path, l.result = strings.CutSuffix(path, "/result")
	case http.MethodDelete:
	default:
		return lookup{}, false
	}
	last := path[strings.LastIndexByte(path, '/')+1:]
	id, err := uuid.Parse(last)
	if err != nil || len(last) != len(id.String()) {
		return lookup{}, false
	}
	l.id = id.String()
	return l, true
}

// collection answers requests about tasks. A task's ID is the capability: who knows
// it may see and cancel the task.
type collection struct {
	app   *App
	log   *zap.Logger
	queue string // whose tasks; those of all queues and of waiting clients if empty
}

// serve answers a request about a task. A store that is full can be read.
func (c *collection) serve(w http.ResponseWriter, r *http.Request, l lookup) error {
	w.Header().Set("Cache-Control", "no-store") // that there is no such task yet, too
	s, leave, err := c.app.look()
	if err != nil {
		return unavailable(w, c.log, err)
	}
	defer leave()
	rec, err := s.Get(r.Context(), l.id)
	switch {
	case errors.Is(err, engine.ErrNotFound), err == nil && c.queue != "" && rec.Queue != c.queue:
		return writeProblem(w, c.notFound())
	case err != nil:
		return unavailable(w, c.log, err)
	case r.Method == http.MethodDelete:
		return c.cancel(w, r, s, l.id)
	}
	if rec, err = c.await(w, r, s, rec, l); err != nil {
		return writeProblem(w, c.notFound())
	}
	if l.result {
		return c.writeResult(w, r, s, rec)
	}
	return writeDocument(w, r, rec)
}

// notFound is the answer for a task that the collection does not have.
func (c *collection) notFound() *problem {
	if c.queue == "" {
		return &problem{http.StatusNotFound, "no such task"}
	}
	return &problem{http.StatusNotFound, "no such task in this queue"}
}

// publicTask is the task document as a client sees it: without what
// receivers answered, and without the host of the operator's own URL and what went
// wrong there, which may name internal addresses.
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

// errCanceled is what the callback of a canceled task says.
const errCanceled = "canceled"

func (c *collection) cancel(w http.ResponseWriter, r *http.Request, s *sharedStore, id string) error {
	err := s.Act(r.Context(), id, engine.Action{Kind: engine.Cancel, Reason: errCanceled})
	switch {
	case errors.Is(err, engine.ErrEnded):
		return writeProblem(w, &problem{http.StatusConflict, "the task has ended"})
	case errors.Is(err, engine.ErrNotFound):
		return writeProblem(w, c.notFound())
	case err != nil:
		return unavailable(w, c.log, err)
	}
	c.app.countCanceled(r.Context(), s, id)
	return writeJSON(w, http.StatusAccepted, map[string]string{"task_id": id})
}

// statusWithout is what is answered in place of a response that there is none
// of: what a waiting client would have got.
func statusWithout(rec *task.Record) int {
	switch {
	case rec.Status == task.TimedOut:
		return http.StatusGatewayTimeout
	case rec.Error == errCanceled:
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

// writeResult answers with the task's response as the app gave it. A content
// coding that the client does not accept is undone.
func (c *collection) writeResult(w http.ResponseWriter, r *http.Request, s *sharedStore, rec *task.Record) error {
	switch {
	case !rec.Ended():
		setRetryAfter(w.Header(), rec.CreatedAt, rec.NextAttemptAt)
		return writeProblem(w, &problem{http.StatusConflict, "the task has no result yet: it is " + string(rec.State)})
	case rec.Result == nil:
		return writeProblem(w, &problem{statusWithout(rec), rec.Error})
	}
	stored, err := s.Open(r.Context(), rec.ID, engine.ResultBody)
	if errors.Is(err, engine.ErrNotFound) {
		return writeProblem(w, &problem{http.StatusNotFound, "the task's result is no longer kept"})
	} else if err != nil {
		return unavailable(w, c.log, err)
	}
	defer stored.Close()
	h := w.Header()
	c.setResultHeader(h, rec.Result)
	if rec.Result.Size > rec.Result.Kept {
		h.Set("Callback-Truncated", strconv.FormatInt(rec.Result.Size, 10))
	}
	body := acceptable(h, r, rec, stored)
	defer body.Close()
	if _, decoded := body.(*decodedBody); !decoded && hasBody(rec.UpstreamStatus) {
		h.Set("Content-Length", strconv.FormatInt(rec.Result.Kept, 10))
	}
	w.WriteHeader(rec.UpstreamStatus)
	if r.Method == http.MethodHead || !hasBody(rec.UpstreamStatus) {
		return nil
	}
	if _, err := io.Copy(w, body); err != nil {
		c.log.Debug("result not sent whole", zap.String("task_id", rec.ID), zap.Error(err))
		panic(http.ErrAbortHandler) // the client must not take the part for the whole
	}
	return nil
}

// setResultHeader sets the header of a response that is a task's result. Of the
// response to a waiting client, only what describes its body is kept.
func (c *collection) setResultHeader(h http.Header, result *task.Result) {
	for name, values := range result.Header {
		if isToken(name) { // reverse_proxy keeps a trailer as "Trailer:Name"
			h[name] = values
		}
	}
	// Not what the header says: a body that was too long may have been decoded.
	for name, value := range map[string]string{"Content-Type": result.ContentType, "Content-Encoding": result.ContentEncoding} {
		if h.Del(name); value != "" {
			h.Set(name, value)
		}
	}
	h.Set("Cache-Control", "no-store")
	if c.queue == "" {
		// The result may be that of another site. On this one it must neither run
		// scripts nor set cookies.
		h.Add("Content-Security-Policy", "sandbox")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Del("Set-Cookie")
	}
}

// hasBody says whether a response with the status can have a body. Over HTTP/2 one
// that cannot is malformed with a content-length.
func hasBody(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// acceptable returns the result's body as the client accepts it, and changes the
// header accordingly: as it is stored, or without its content coding. It stays
// encoded if the coding is not known or only the beginning of the body was kept.
func acceptable(h http.Header, r *http.Request, rec *task.Record, stored io.ReadCloser) io.ReadCloser {
	codings := strings.Join(h.Values("Content-Encoding"), ",")
	result := rec.Result
	if codings == "" || result.Kept == 0 || result.Size > result.Kept || !hasBody(rec.UpstreamStatus) {
		return stored
	}
	h.Add("Vary", "Accept-Encoding")
	if acceptsCodings(r.Header.Values("Accept-Encoding"), codings) {
		return stored
	}
	decoded, ok := newDecodedBody(codings, stored)
	if !ok {
		return decoded
	}
	for _, name := range []string{"Content-Encoding", "Content-Md5", "Content-Digest", "Digest", "Repr-Digest"} {
		h.Del(name)
	}
	if etag := h.Get("Etag"); strings.HasPrefix(etag, `"`) {
		h.Set("Etag", "W/"+etag) // other bytes, the same meaning
	}
	return decoded
}

// acceptsCodings says whether a client accepts all of a body's content codings. A
// client that sends no Accept-Encoding could be sent any (RFC 9110, section
// 12.5.3), but curl and most libraries do not decode what they have not asked for.
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

// decodeAhead is how much of a result is decoded before its header is sent, in
// bytes: whether the body is in its coding at all shows there.
const decodeAhead = 32 << 10

// decodedBody is a result without its content codings.
type decodedBody struct {
	io.Reader
	decoder io.Closer
}

func (b *decodedBody) Close() error { return b.decoder.Close() }

// newDecodedBody returns a decodedBody. It reports false, and returns the body as it
// is stored, if that is not in its codings.
func newDecodedBody(codings string, stored io.ReadCloser) (io.ReadCloser, bool) {
	seen := &recorder{r: stored, read: new(bytes.Buffer)}
	decoder, err := form.NewReader(codings, seen)
	if err != nil {
		return stored, false
	}
	ahead, err := io.ReadAll(io.LimitReader(decoder, decodeAhead))
	if err != nil {
		decoder.Close()
		return io.NopCloser(io.MultiReader(seen.read, stored)), false
	}
	seen.read = nil
	rest := &boundedBody{r: decoder, left: capture.MaxDecoded}
	return &decodedBody{Reader: io.MultiReader(bytes.NewReader(ahead), rest), decoder: decoder}, true
}

// recorder keeps what is read through it, until read is nil.
type recorder struct {
	r    io.Reader
	read *bytes.Buffer
}

func (c *recorder) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if c.read != nil {
		c.read.Write(p[:n])
	}
	return n, err
}
