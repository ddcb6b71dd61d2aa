package callback

import (
	"net/http"
	"strconv"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func setDefaultHeader(h http.Header, name, value string) {
	if h.Get(name) == "" {
		h.Set(name, value)
	}
}

// deliveryKey is the idempotency key of a callback: the task's ID, and after a
// redelivery by hand the ID and the time of that redelivery. A receiver drops what
// it has seen under a key, and an operator who sends a callback again wants it
// handled. With the header, net/http repeats a request on a new connection if a
// kept one turns out to be closed.
func deliveryKey(rec *task.Record) string {
	n := len(rec.Redelivered)
	if n == 0 {
		return rec.ID
	}
	return rec.ID + "-" + strconv.FormatInt(rec.Redelivered[n-1].UnixMilli(), 10)
}

// dropUnsendable removes what net/http refuses to send, or the callback would
// never be delivered. Stored headers can have it: reverse_proxy keeps unannounced
// trailers as "Trailer:Name", and handlers may set anything.
func (s *sender) dropUnsendable(h http.Header, id string) {
	for name, values := range h {
		if isToken(name) && !hasUnsendable(values) {
			continue
		}
		delete(h, name)
		if c := s.app.log.Check(zap.DebugLevel, "callback header dropped"); c != nil {
			c.Write(zap.String("task_id", id), zap.String("header", name))
		}
	}
}

func hasUnsendable(values []string) bool {
	for _, value := range values {
		if fieldValue(value) != value {
			return true
		}
	}
	return false
}
