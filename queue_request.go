package callback

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
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
		id, err := uuid.NewRandom()
		if err != nil {
			return nil, fmt.Errorf("making a task ID: %w", err)
		}
		rec.ID, rec.CreatedAt = id.String(), time.Now().UTC()
		rec.Callback, rec.CallbackHost = t.callback, t.host
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

// readBody reads the request's body: into memory if it fits in a message, else
// into the engine as it comes. It returns its hash as well, if that is asked for.
func readBody(ctx context.Context, e *engine.Engine, rec *task.Record, r *http.Request, limit int64, hashed bool) ([]byte, []byte, error) {
	body := &boundedBody{r: r.Body, left: limit}
	if hashed {
		body.sum = sha256.New()
	}
	if r.Body == nil || r.Body == http.NoBody {
		return nil, body.hash(), nil
	}
	inline := int64(e.InlineLimit())
	var read bytes.Buffer
	read.Grow(int(min(max(r.ContentLength, 0), inline)) + bytes.MinRead)
	_, err := read.ReadFrom(io.LimitReader(body, inline+1))
	head := read.Bytes()
	if err == nil && int64(len(head)) > inline {
		err = e.StoreBody(ctx, rec, io.MultiReader(&read, body))
		head = nil
	} else {
		rec.Request.Size = int64(len(head))
	}
	var bounded *http.MaxBytesError
	if errors.As(body.err, &bounded) { // by request_body before the queue
		body.over, limit = true, bounded.Limit
	}
	switch {
	case body.over:
		return nil, nil, &problem{http.StatusRequestEntityTooLarge, fmt.Sprintf("a task can have %d bytes at most", limit)}
	case body.err != nil:
		return nil, nil, &problem{http.StatusBadRequest, "the request's body broke off"}
	}
	return head, body.hash(), err
}

// boundedBody reads a body up to a limit, and hashes it.
type boundedBody struct {
	r    io.Reader
	left int64
	sum  hash.Hash // nil if nobody asks for it
	over bool
	err  error // of the client's
}

func (b *boundedBody) hash() []byte {
	if b.sum == nil {
		return nil
	}
	return b.sum.Sum(nil)
}

var errBodyTooLarge = errors.New("the body is too large")

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		b.over = true
		return 0, errBodyTooLarge
	}
	if b.sum != nil {
		b.sum.Write(p[:n])
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}
