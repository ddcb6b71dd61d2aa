package callback

import (
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// newRecord makes the record of a request as it stands now, after what comes
// before the queue in the route.
func (q *TaskQueue) newRecord(t *ticket, r *http.Request) (*task.Record, error) {
	rec := &task.Record{Route: q.Name}
	if t.exchange != nil {
		*rec = t.exchange.rec
		rec.StartedAt, rec.Route = time.Time{}, q.Name
	} else {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("making a task ID: %w", err)
		}
		rec.ID, rec.CreatedAt = id.String(), time.Now().UTC()
		rec.Callback, rec.CallbackHost, rec.CallbackDomain = t.callback, t.host, quotaDomain(t.callback, t.host)
	}
	rec.Queue, rec.Timeout, rec.Span = q.Name, t.timeout, spanOf(r.Context())
	rec.Request = storedRequest(r)
	if t.profile == profileOpenFaaS {
		rec.Request.Path = syncURI(r.URL.RequestURI())
	}
	dropHeader(rec.Request.Header, t.header)
	rec.Request.Header.Set(t.header, rec.ID)
	takePreferences(rec.Request.Header)
	rec.Request.Header.Del("Expect")
	return rec, nil
}

// storedRequest is what is kept of a request.
func storedRequest(r *http.Request) *task.Request {
	stored := &task.Request{
		Method: r.Method, URI: r.RequestURI, Proto: r.Proto, Host: r.Host,
		Header: r.Header.Clone(), RemoteAddr: r.RemoteAddr, TLS: r.TLS != nil,
	}
	if now := r.URL.RequestURI(); now != r.RequestURI {
		stored.Path = now
	}
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	for name, value := range vars {
		if name == caddyhttp.ClientIPVarKey || name == caddyhttp.TrustedProxyVarKey {
			continue // made anew from the address and the headers
		}
		switch value.(type) {
		case string, bool, int, int64, float64: // as the vars directive has them
			if stored.Vars == nil {
				stored.Vars = make(map[string]string)
			}
			stored.Vars[name] = fmt.Sprint(value)
		}
	}
	return stored
}

// spool reads the request's body to its end, unless it is larger than a task can
// be: a client that stalls must not keep anything from the queue, nor memory. The
// error is a *problem.
func (q *TaskQueue) spool(t *ticket, w http.ResponseWriter, r *http.Request) error {
	return problemOf(bodies.Spool(r, bodies.Options{Limit: t.limit, Folder: q.app.spool, Response: w}))
}

// boundedBody reads the body of a request up to a limit, and hashes it.
type boundedBody struct {
	r    io.Reader
	left int64
	hash hash.Hash // nil if nobody asks for it

	limit int64
	err   error // why the body cannot be read to its end
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

// problem says why the body could not be read.
func (b *boundedBody) problem() *problem {
	var bounded *http.MaxBytesError
	switch {
	case errors.As(b.err, &bounded): // by request_body before the queue
		return &problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("a task can have %d bytes at most", bounded.Limit)}
	case errors.Is(b.err, errBodyTooLarge):
		return &problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("a task can have %d bytes at most", b.limit)}
	}
	return &problem{http.StatusBadRequest, "the request's body broke off"}
}
