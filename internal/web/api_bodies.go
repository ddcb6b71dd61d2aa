package web

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	// encodings bounds the memory for callbacks that are encoded for display.
	encodings = 64 << 20
	// maxShown bounds the part of a callback's body in the JSON document.
	maxShown = 1 << 20
)

// newEncoder returns an encoder of callbacks for display. It encodes in memory only.
func newEncoder(c APIConfig) *encode.Encoder {
	secret := func(ctx context.Context) ([]byte, error) {
		e, leave, err := c.Open()
		if err != nil {
			return nil, err
		}
		defer leave()
		return e.Secret(ctx)
	}
	return encode.New(encode.Options{Large: math.MaxInt64, InMemory: math.MaxInt64, Budget: encodings, Secret: secret})
}

// errNoResult is the error for a result that does not exist or is no longer kept.
var errNoResult = &apiError{http.StatusNotFound, "the task has no result, or its result is no longer kept"}

// result writes the endpoint's response as it was captured.
func (a *API) result(c *call) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	rec, err := e.Get(c.r.Context(), c.id)
	if err != nil {
		return 0, nil, err
	}
	if rec.Result == nil {
		return 0, nil, errNoResult
	}
	body, err := e.Open(c.r.Context(), c.id, engine.ResultBody)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return 0, nil, errNoResult
	case err != nil:
		return 0, nil, err
	}
	defer body.Close()
	c.attach(c.id+".result", rec.Result.Kept, body)
	return 0, nil, nil
}

// attach writes bytes of another origin as a download. A browser must not display them:
// a page of a client would have the operator's rights.
func (c *call) attach(name string, size int64, body io.Reader) {
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	h.Set("Content-Length", strconv.FormatInt(size, 10))
	c.w.WriteHeader(http.StatusOK)
	if c.r.Method != http.MethodHead {
		_, _ = io.Copy(c.w, body) // an error means that the client disconnected
	}
}

// sentCallback describes the request of a callback.
type sentCallback struct {
	Method string `json:"method"`
	// URL has no userinfo and no query: they may hold secrets.
	URL string `json:"url"`
	// Headers are those of the last attempt, or of the first one if none was made yet.
	// Secrets are masked.
	Headers [][2]string `json:"headers"`
	// Body has at most maxShown bytes, as text or in base64. BodySize is the full size.
	Body       string `json:"body,omitempty"`
	BodyBase64 string `json:"body_base64,omitempty"`
	BodySize   int64  `json:"body_size"`
}

// callback writes the request of a task's callback, or with raw=true only its body.
func (a *API) callback(c *call) (int, any, error) {
	raw, err := c.flag("raw")
	if err != nil {
		return 0, nil, err
	}
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	rec, err := e.Get(c.r.Context(), c.id)
	switch {
	case err != nil:
		return 0, nil, err
	case rec.Callback == nil:
		return 0, nil, &apiError{http.StatusNotFound, "the task has no callback"}
	case !rec.Ended():
		return 0, nil, &apiError{http.StatusNotFound, "the task has no verdict yet"}
	}
	body, err := a.encoder.Encode(c.r.Context(), rec, func(ctx context.Context) (io.ReadCloser, error) {
		return e.Open(ctx, c.id, engine.ResultBody)
	})
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return 0, nil, errNoResult
	case err != nil:
		return 0, nil, err
	}
	defer body.Release()
	content, err := body.Open()
	if err != nil {
		return 0, nil, err
	}
	defer content.Close()
	if raw {
		c.attach(c.id+".callback", body.Size, content)
		return 0, nil, nil
	}
	text, err := io.ReadAll(io.LimitReader(content, maxShown))
	if err != nil {
		return 0, nil, err
	}
	answer := sentCallback{Method: http.MethodPost, URL: send.PublicURL(rec.Callback.URL), BodySize: body.Size}
	answer.Headers = send.Preview(rec, body)
	if n := len(rec.Traces); n > 0 && len(rec.Traces[n-1].Sent) > 0 {
		answer.Headers = rec.Traces[n-1].Sent
	}
	if utf8.Valid(text) {
		answer.Body = string(text)
	} else {
		answer.BodyBase64 = base64.StdEncoding.EncodeToString(text)
	}
	return http.StatusOK, answer, nil
}

// shownAttempt is an attempt with all its details.
type shownAttempt struct {
	Number int `json:"attempt"` // restarts at 1 after a redelivery
	task.Attempt
	// The durations of the phases, and the data sent and received.
	RemoteAddr string      `json:"remote_addr,omitempty"`
	DNS        float64     `json:"dns_ms,omitempty"`
	Connect    float64     `json:"connect_ms,omitempty"`
	TLS        float64     `json:"tls_ms,omitempty"`
	FirstByte  float64     `json:"first_byte_ms,omitempty"`
	Sent       [][2]string `json:"request_headers,omitempty"`
	Received   [][2]string `json:"response_headers,omitempty"`
}

func shownAttempts(rec *task.Record) []shownAttempt {
	list := make([]shownAttempt, 0, len(rec.Attempts))
	for i, number := range attemptNumbers(rec) {
		t, _ := rec.TraceOf(rec.Attempts[i])
		list = append(list, shownAttempt{
			Number: number, Attempt: rec.Attempts[i], RemoteAddr: t.RemoteAddr, DNS: t.DNS, Connect: t.Connect, TLS: t.TLS,
			FirstByte: t.FirstByte, Sent: t.Sent, Received: t.Received,
		})
	}
	return list
}

func (a *API) attempts(c *call) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	rec, err := e.Get(c.r.Context(), c.id)
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, shownAttempts(rec), nil
}
