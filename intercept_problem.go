package callback

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// problem is a request that cannot be accepted: status and detail of an
// RFC 9457 document.
type problem struct {
	status int
	detail string
}

func (p *problem) Error() string { return p.detail }

// retryAfter is what clients are told while tasks cannot be stored, in seconds.
const retryAfter = 5

// writeProblem answers a request that cannot be accepted with an RFC 9457
// document.
func writeProblem(w http.ResponseWriter, err error) error {
	var p *problem
	if !errors.As(err, &p) {
		return err
	}
	switch p.status {
	case http.StatusRequestTimeout:
		w.Header().Set("Connection", "close") // what is left of the body is not waited for
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

// unavailable answers what cannot be answered without the store, or what has no
// room in it.
func unavailable(w http.ResponseWriter, log *zap.Logger, err error) error {
	log.Warn("request refused", zap.Error(err))
	if errors.Is(err, engine.ErrQuota) {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
		return writeProblem(w, &problem{http.StatusTooManyRequests, "too many callbacks wait for this destination"})
	}
	return writeProblem(w, &problem{http.StatusServiceUnavailable, "callbacks are not available at the moment"})
}
