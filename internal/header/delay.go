package header

import (
	"fmt"
	"net/http"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/problem"
)

// The headers with which a client delays its task.
const (
	delayHeader     = "Task-Delay"
	notBeforeHeader = "Task-Not-Before"
)

// StartTime returns the time before which a request's task must not start, or zero if it
// can start at once. longest is the longest permitted delay. parse reads a duration such
// as 1d. The error is a *problem.Problem that names the header.
func StartTime(h http.Header, now time.Time, longest time.Duration, parse func(string) (time.Duration, error)) (time.Time, error) {
	delays, times := h[delayHeader], h[notBeforeHeader]
	switch {
	case len(delays) > 0 && len(times) > 0:
		return time.Time{}, problem.New(http.StatusBadRequest, "task-delay: cannot be combined with task-not-before; send one of them")
	case len(delays) > 1:
		return time.Time{}, problem.New(http.StatusBadRequest, "task-delay: the header occurs twice; send it once")
	case len(times) > 1:
		return time.Time{}, problem.New(http.StatusBadRequest, "task-not-before: the header occurs twice; send it once")
	case len(delays) > 0:
		delay, err := parse(delays[0])
		if err != nil || delay < 0 {
			return time.Time{}, problem.New(http.StatusBadRequest, fmt.Sprintf("task-delay: %.64q is not a duration such as 90s, 10m or 1d", delays[0]))
		}
		return delayedBy(delay, now, longest)
	case len(times) > 0:
		return notBefore(times[0], now, longest)
	}
	return time.Time{}, nil
}

func delayedBy(delay time.Duration, now time.Time, longest time.Duration) (time.Time, error) {
	switch {
	case delay > longest:
		return time.Time{}, problem.New(http.StatusBadRequest, fmt.Sprintf("task-delay: %v is more than the %v that the queue allows", delay, longest))
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
		return time.Time{}, problem.New(http.StatusBadRequest,
			fmt.Sprintf("task-not-before: %.64q is neither an HTTP date nor a time of RFC 3339 such as 2026-12-24T18:00:00Z", value))
	case at.After(now.Add(longest)):
		return time.Time{}, problem.New(http.StatusBadRequest, fmt.Sprintf("task-not-before: the time is more than %v from now, the maximum of the queue", longest))
	case !at.After(now):
		return time.Time{}, nil
	}
	return at.UTC(), nil
}

// DropDelay removes the headers that delay a task.
func DropDelay(h http.Header) {
	Drop(h, delayHeader)
	Drop(h, notBeforeHeader)
}
