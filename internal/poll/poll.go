// Package poll decides how to continue with an endpoint that accepts a request and
// answers it later: whether an answer is final, where to ask next, and when. It does no
// I/O: the caller sends the requests.
package poll

import (
	"cmp"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Rules describe an endpoint that answers later.
type Rules struct {
	// Location is where an answer names the URL to poll.
	Location Source
	// Pending are the answers after which the endpoint is polled again. One is enough.
	Pending []Condition
	// Failed are the answers that make the task FAILED although their status is below
	// 400. One is enough. They are checked before Pending.
	Failed []Condition
	// Result is where the final answer names the URL of the result. If it is the zero
	// value, or the answer names none, the final answer itself is the result.
	Result Source
	// Hosts are the hosts, with or without a port, to which locations may lead in
	// addition to the host of the task's request.
	Hosts []string
	// Interval is the wait before the first poll. Each further one is half as long
	// again, up to Longest.
	Interval, Longest time.Duration
}

// Outcome is what follows from an answer.
type Outcome string

// The outcomes.
const (
	// Pending means that the endpoint is asked again.
	Pending Outcome = "pending"
	// Retry means that the poll failed for now, and is repeated.
	Retry Outcome = "retry"
	// Final means that the answer is the task's result.
	Final Outcome = "final"
	// Failed means that the answer is the task's result and says that the task failed.
	Failed Outcome = "failed"
)

// Exchange is a request of a task and the answer to it.
type Exchange struct {
	// Poll has the URI and the host of the request, and the state of earlier polls.
	Poll task.Poll
	// First marks the task's own request. The others are polls.
	First bool
	// Home is the host of the task's own request.
	Home   string
	Answer Answer
}

// Step is what to do after an answer.
type Step struct {
	Outcome Outcome
	// Poll describes the next request, for the outcomes Pending and Retry.
	Poll task.Poll
	// Wait is the time until the next request. Zero means at once.
	Wait time.Duration
}

var (
	// ErrNoLocation means that the endpoint accepted the request and named no URL to
	// poll.
	ErrNoLocation = errors.New("the endpoint accepted the request and named no location to poll")
	// ErrLocation means that the endpoint named a location that is not followed. The
	// error that wraps it has the details, which may name internal addresses.
	ErrLocation = errors.New("the endpoint named a location that the gateway does not follow")
	// ErrCut means that the part of an answer that tells whether it is final was cut off.
	ErrCut = errors.New("the endpoint's answer is larger than max_result, and its state is in the part that was cut off")
)

// Public returns the error that clients may see: ErrNoLocation, ErrLocation or ErrCut. An
// error of [Rules.Next] itself may name internal addresses.
func Public(err error) error {
	for _, known := range []error{ErrNoLocation, ErrCut} {
		if errors.Is(err, known) {
			return known
		}
	}
	return ErrLocation
}

// Next returns what to do after an answer. It returns an error that wraps ErrNoLocation,
// ErrLocation or ErrCut if the endpoint cannot be polled.
func (r *Rules) Next(x Exchange) (Step, error) {
	a := &x.Answer
	switch {
	case !x.First && isTemporary(a.Status):
		return r.again(Retry, x), nil
	case x.Poll.Result:
		return Step{Outcome: Final}, nil
	case x.First && a.Status >= 400:
		return Step{Outcome: Final}, nil
	case a.meets(r.Failed):
		return Step{Outcome: Failed}, nil
	case x.First && a.Status == http.StatusAccepted, a.meets(r.Pending):
		found, err := r.locate(&x, r.Location)
		switch {
		case err != nil:
			return Step{}, err
		case x.First && !found:
			return Step{}, ErrNoLocation
		}
		return r.again(Pending, x), nil
	case a.Status >= 400:
		return Step{Outcome: Final}, nil
	case a.unknown(r.paths()...):
		return Step{}, ErrCut
	}
	found, err := r.locate(&x, r.Result)
	if err != nil || !found {
		return Step{Outcome: Final}, err
	}
	x.Poll.Result, x.Poll.Interval = true, 0
	return Step{Outcome: Pending, Poll: x.Poll}, nil
}

// paths returns the paths of the values that decide whether an answer is final.
func (r *Rules) paths() []string {
	all := []string{r.Result.JSON}
	for _, c := range slices.Concat(r.Pending, r.Failed) {
		all = append(all, c.JSON)
	}
	return all
}

// again returns the step that sends x's poll after a wait: the one that the endpoint
// asks for, or else one that grows.
func (r *Rules) again(o Outcome, x Exchange) Step {
	if x.Poll.Interval == 0 {
		x.Poll.Interval = r.Interval
	} else {
		x.Poll.Interval = min(x.Poll.Interval+x.Poll.Interval/2, r.Longest)
	}
	return Step{Outcome: o, Poll: x.Poll, Wait: cmp.Or(x.Answer.RetryAfter, x.Poll.Interval)}
}

// isTemporary reports whether a poll that got the status is worth repeating. 0 means
// that there was no answer.
func isTemporary(status int) bool {
	temporary := []int{0, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests}
	return status >= 500 || slices.Contains(temporary, status)
}
