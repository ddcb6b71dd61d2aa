package taskapi

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/link"
	"github.com/caddy-callback/caddy-callback/internal/problem"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// ServeLink answers a request with the link to a result; query has the link's parameters.
// The signature is its only authentication, and permits nothing else.
func (c *Collection) ServeLink(w http.ResponseWriter, r *http.Request, l Lookup, query url.Values) error {
	w.Header().Set("Cache-Control", "no-store")
	e, leave, err := c.Open()
	if err != nil {
		return problem.WriteUnavailable(w, c.Log, err)
	}
	defer leave()
	secret, err := e.Secret(r.Context())
	if err != nil {
		return problem.WriteUnavailable(w, c.Log, err)
	}
	if err := link.Verify(secret, l.ID, query, time.Now()); err != nil {
		return problem.Write(w, problem.New(http.StatusForbidden, err.Error()))
	}
	if !l.Result {
		return problem.Write(w, problem.New(http.StatusForbidden, "the link is that of a result"))
	}
	rec, err := e.Get(r.Context(), l.ID)
	switch {
	case errors.Is(err, engine.ErrNotFound), err == nil && rec.Result == nil:
		return problem.Write(w, errResultGone)
	case err != nil:
		return problem.WriteUnavailable(w, c.Log, err)
	}
	// The receiver knows the task's status from the callback. Here it would say that the
	// download has failed.
	return c.sendResult(w, r, e, rec, http.StatusOK)
}

// wholeResult is a result that is sent in ranges. It records the error of reading it,
// which [http.ServeContent] does not return.
type wholeResult struct {
	io.ReadSeeker
	err error
}

func (b *wholeResult) Read(p []byte) (int, error) {
	n, err := b.ReadSeeker.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// serveContent sends a body with ranges and conditions.
func (c *Collection) serveContent(w http.ResponseWriter, r *http.Request, rec *task.Record, body io.ReadSeeker) {
	h := w.Header()
	if h.Get("Etag") == "" {
		h.Set("Etag", `"`+rec.ID+`"`) // a result does not change, so downloads can be resumed
	}
	for _, name := range []string{"Content-Range", "Accept-Ranges", "Last-Modified"} {
		h.Del(name) // of the endpoint's response
	}
	content := &wholeResult{ReadSeeker: body}
	http.ServeContent(w, r, "", time.Time{}, content)
	if content.err != nil {
		c.abort(rec, content.err)
	}
}

// abort ends a response that could not be sent whole.
func (c *Collection) abort(rec *task.Record, err error) {
	c.Log.Debug("result not sent whole", zap.String("task_id", rec.ID), zap.Error(err))
	panic(http.ErrAbortHandler) // the client must not mistake a partial result for a complete one
}
