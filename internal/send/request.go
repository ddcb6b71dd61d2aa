package send

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// request builds the request of an attempt.
func (s *Sender) request(ctx context.Context, c Callback, prepare Prepare, at time.Time) (*http.Request, error) {
	rec, head := c.Record, &c.Body.Head
	u, err := url.Parse(rec.Callback.URL)
	if err != nil {
		return nil, errUnusable // the text of err contains the URL's query
	}
	u.Host = strings.TrimSuffix(u.Host, ":") // an empty port is not for the Host header
	h := make(http.Header, headerFields)
	req := (&http.Request{Method: http.MethodPost, URL: u, Host: u.Host, Header: h, Body: http.NoBody}).WithContext(ctx)
	setHeader(h, rec, head, s.opts.UserAgent)
	if prepare != nil {
		prepare(req, at)
	}
	service := profile.Of(rec.Callback.Profile)
	service.SetHeader(h, rec, at)
	if err := s.sign(ctx, h, c, service, at); err != nil {
		return nil, err
	}
	s.dropUnsendable(h, rec.ID)
	return req, setBody(req, c)
}

// headerFields is about how many fields the header of a callback has.
const headerFields = 14

// setHeader sets the headers of a callback, except those of a profile and the
// signatures.
func setHeader(h http.Header, rec *task.Record, head *form.Callback, userAgent string) {
	values := make([]string, 0, headerFields) // of all fields, in one allocation
	set := func(name, value string) {
		if value == "" {
			return
		}
		n := len(values)
		values = append(values, value)
		h[http.CanonicalHeaderKey(name)] = values[n : n+1 : n+1]
	}
	for _, field := range rec.Callback.Header {
		h.Add(field[0], field[1])
	}
	set("Content-Type", head.ContentType)
	set("Content-Encoding", head.ContentEncoding)
	set("Callback-Encoding", head.Encoding)
	set("Callback-Result-Url", head.Link)
	if head.Truncated > 0 {
		set("Callback-Truncated", strconv.FormatInt(head.Truncated, 10))
	}
	if h.Get("User-Agent") == "" {
		set("User-Agent", userAgent)
	}
	// The OWASP core rule set of web application firewalls refuses requests without
	// Accept.
	if h.Get("Accept") == "" {
		set("Accept", "*/*")
	}
	set("Idempotency-Key", deliveryKey(rec))
	set(rec.Callback.TaskHeader, rec.ID)
	set(rec.Callback.StatusHeader, string(rec.Status))
	set("Callback-Attempt", strconv.Itoa(rec.Tries+1))
	if rec.UpstreamStatus != 0 {
		set("Callback-Upstream-Status", strconv.Itoa(rec.UpstreamStatus))
	}
	set("Traceparent", rec.Callback.Traceparent)
}

// setBody sets the body of the request. net/http opens it again if a reused connection
// turns out to be closed.
func setBody(req *http.Request, c Callback) (err error) {
	if c.Body.Size == 0 {
		return nil
	}
	req.ContentLength, req.GetBody = c.Body.Size, c.Body.Open
	req.Body, err = c.Body.Open()
	return err
}

// sign adds the signatures of the body. It reads the body once.
func (s *Sender) sign(ctx context.Context, h http.Header, c Callback, service profile.Profile, at time.Time) error {
	keys := s.keysOf(c.Record.Callback)
	if len(keys) == 0 {
		return nil
	}
	if webhook.NeedBody(keys) {
		free, err := c.Body.Reserve(ctx)
		if err != nil {
			return err
		}
		defer free()
	}
	signer := webhook.NewSigner(keys, c.Record.ID, at)
	both := io.Writer(signer)
	own := service.Signer(keys, at)
	if own != nil {
		both = io.MultiWriter(signer, own)
	}
	body, err := c.Body.Open()
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(both, body); err != nil {
		return err
	}
	if own != nil {
		own.SetHeader(h)
	}
	h.Set(webhook.HeaderID, c.Record.ID)
	h.Set(webhook.HeaderTimestamp, strconv.FormatInt(at.Unix(), 10))
	h.Set(webhook.HeaderSignature, signer.Signature())
	return nil
}

// keysOf returns the keys that sign a callback.
func (s *Sender) keysOf(callback *task.Callback) []webhook.Key {
	if callback.KeyFor == nil {
		return s.opts.Keys
	}
	derived := make([]webhook.Key, len(s.opts.Keys))
	for i, key := range s.opts.Keys {
		derived[i] = key.Derive(*callback.KeyFor)
	}
	return derived
}

// deliveryKey returns the idempotency key of a callback: the task's ID, and after a
// manual redelivery the ID and the time of that redelivery. A receiver drops duplicates
// by this key, but an operator who redelivers a callback wants it handled again.
// Because of the header, net/http repeats a request on a new connection if a reused one
// turns out to be closed.
func deliveryKey(rec *task.Record) string {
	n := len(rec.Redelivered)
	if n == 0 {
		return rec.ID
	}
	return rec.ID + "-" + strconv.FormatInt(rec.Redelivered[n-1].UnixMilli(), 10)
}

// dropUnsendable removes headers that net/http refuses to send. With one of them, the
// callback could never be delivered. Stored headers can contain them: reverse_proxy
// keeps unannounced trailers as "Trailer:Name", and handlers may set any header.
func (s *Sender) dropUnsendable(h http.Header, id string) {
	for name, values := range h {
		if httpguts.ValidHeaderFieldName(name) && sendable(values) {
			continue
		}
		delete(h, name)
		if s.opts.Dropped != nil {
			s.opts.Dropped(id, name)
		}
	}
}

func sendable(values []string) bool {
	for _, value := range values {
		if !httpguts.ValidHeaderFieldValue(value) {
			return false
		}
	}
	return true
}
