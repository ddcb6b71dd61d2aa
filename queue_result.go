package callback

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// writeResult answers with the task's response as the app gave it. A content
// coding that the client does not accept is undone.
func (q *TaskQueue) writeResult(w http.ResponseWriter, r *http.Request, s *sharedStore, rec *task.Record) error {
	switch {
	case !rec.Ended():
		return writeProblem(w, &problem{http.StatusConflict, "the task has no result yet: it is " + string(rec.State)})
	case rec.Result == nil:
		return writeProblem(w, &problem{statusWithout(rec), rec.Error})
	}
	stored, err := s.Open(r.Context(), rec.ID, engine.ResultBody)
	if errors.Is(err, engine.ErrNotFound) {
		return writeProblem(w, &problem{http.StatusNotFound, "the task's result is no longer kept"})
	} else if err != nil {
		return unavailable(w, q.log, err)
	}
	defer stored.Close()
	h := w.Header()
	for name, values := range rec.Result.Header {
		if isToken(name) { // reverse_proxy keeps a trailer as "Trailer:Name"
			h[name] = values
		}
	}
	h.Set("Cache-Control", "no-store")
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
		q.log.Debug("result not sent whole", zap.String("task_id", rec.ID), zap.Error(err))
		panic(http.ErrAbortHandler) // the client must not take the part for the whole
	}
	return nil
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
	rest := &boundedBody{r: decoder, left: maxInflated}
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
