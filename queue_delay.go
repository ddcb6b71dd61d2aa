package callback

import (
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-callback/caddy-callback/internal/header"
)

// The headers with which a client delays its task.
const (
	delayHeader     = "Task-Delay"
	notBeforeHeader = "Task-Not-Before"
)

// startTime returns the time before which a request's task must not start, or zero if it
// can start at once. longest is the longest permitted delay. The error is a *problem that
// names the header.
func startTime(h http.Header, now time.Time, longest time.Duration) (time.Time, error) {
	delays, times := h[delayHeader], h[notBeforeHeader]
	switch {
	case len(delays) > 0 && len(times) > 0:
		return time.Time{}, &problem{http.StatusBadRequest, "task-delay: it excludes task-not-before, and both are set"}
	case len(delays) > 1:
		return time.Time{}, &problem{http.StatusBadRequest, "task-delay: the header is there twice"}
	case len(times) > 1:
		return time.Time{}, &problem{http.StatusBadRequest, "task-not-before: the header is there twice"}
	case len(delays) > 0:
		return delayedBy(delays[0], now, longest)
	case len(times) > 0:
		return notBefore(times[0], now, longest)
	}
	return time.Time{}, nil
}

func delayedBy(value string, now time.Time, longest time.Duration) (time.Time, error) {
	delay, err := caddy.ParseDuration(value)
	switch {
	case err != nil || delay < 0:
		return time.Time{}, &problem{http.StatusBadRequest, fmt.Sprintf("task-delay: %.64q is not a duration such as 90s, 10m or 1d", value)}
	case delay > longest:
		return time.Time{}, &problem{http.StatusBadRequest, fmt.Sprintf("task-delay: %v is more than the %v that the queue allows", delay, longest)}
	case delay == 0:
		return time.Time{}, nil
	}
	return now.Add(delay).UTC(), nil
}

func notBefore(value string, now time.Time, longest time.Duration) (time.Time, error) {
	at, err := http.ParseTime(value)
	if err != nil {
		at, err = time.Parse(time.RFC3339, value)
	}
	switch {
	case err != nil:
		return time.Time{}, &problem{http.StatusBadRequest,
			fmt.Sprintf("task-not-before: %.64q is neither an HTTP date nor a time of RFC 3339 such as 2026-12-24T18:00:00Z", value)}
	case at.After(now.Add(longest)):
		return time.Time{}, &problem{http.StatusBadRequest, fmt.Sprintf("task-not-before: the time is more than the %v away that the queue allows", longest)}
	case !at.After(now):
		return time.Time{}, nil
	}
	return at.UTC(), nil
}

// dropDelay removes the headers that delay a task.
func dropDelay(h http.Header) {
	header.Drop(h, delayHeader)
	header.Drop(h, notBeforeHeader)
}
