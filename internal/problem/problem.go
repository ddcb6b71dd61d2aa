// Package problem writes the responses to requests that cannot be accepted, as RFC 9457
// documents.
package problem

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// Problem is the response to a request that cannot be accepted. It is an error.
type Problem struct {
	Status int
	Detail string // one sentence, for the client
}

// New returns a Problem with the status and the detail of an RFC 9457 document.
func New(status int, detail string) *Problem { return &Problem{status, detail} }

// Error returns the detail.
func (p *Problem) Error() string { return p.Detail }

// RetryAfter is the Retry-After, in seconds, of a response that says that tasks cannot
// be stored at the moment.
const RetryAfter = 5

// SetRetryAfter sets Retry-After to [RetryAfter].
func SetRetryAfter(h http.Header) { h.Set("Retry-After", strconv.Itoa(RetryAfter)) }

// Write writes the document of a [*Problem]. It returns any other error, and writes
// nothing.
func Write(w http.ResponseWriter, err error) error {
	var p *Problem
	if !errors.As(err, &p) {
		return err
	}
	switch p.Status {
	case http.StatusRequestTimeout:
		w.Header().Set("Connection", "close") // do not wait for the rest of the body
	case http.StatusServiceUnavailable:
		SetRetryAfter(w.Header())
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	return json.NewEncoder(w).Encode(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(p.Status), p.Status, p.Detail})
}

// WriteUnavailable writes the response to a request that the store cannot serve, and
// logs the reason.
func WriteUnavailable(w http.ResponseWriter, log *zap.Logger, err error) error {
	log.Warn("request refused", zap.Error(err))
	if errors.Is(err, engine.ErrQuota) {
		SetRetryAfter(w.Header())
		return Write(w, New(http.StatusTooManyRequests, "too many callbacks wait for this destination"))
	}
	return Write(w, New(http.StatusServiceUnavailable, "callbacks are not available at the moment"))
}
