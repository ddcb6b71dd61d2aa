package web

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// taskPage is one page of the list of tasks.
type taskPage struct {
	Tasks   []listedTask `json:"tasks"`
	Next    string       `json:"next,omitempty"`
	Scanned int          `json:"scanned"`
}

func (a *API) list(c *call) (int, any, error) {
	filter, _, err := c.filter()
	if err != nil {
		return 0, nil, err
	}
	limit, err := c.limit(defaultLimit)
	if err != nil {
		return 0, nil, err
	}
	cursor, err := c.cursor()
	if err != nil {
		return 0, nil, err
	}
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	found, err := e.List(c.r.Context(), filter, cursor, limit)
	if err != nil {
		return 0, nil, err
	}
	page := taskPage{Tasks: make([]listedTask, 0, len(found.Tasks)), Next: string(found.Next), Scanned: found.Scanned}
	for _, rec := range found.Tasks {
		page.Tasks = append(page.Tasks, brief(rec))
	}
	return http.StatusOK, page, nil
}

// listedTask is a task with its origin and the reason of its state.
type listedTask struct {
	task.Task
	Method      string `json:"method,omitempty"`
	Path        string `json:"path,omitempty"`
	Route       string `json:"route,omitempty"`
	RequestSize int64  `json:"request_size,omitempty"`
	// Reason is why the task failed, or why its callback is not delivered.
	Reason         string `json:"reason,omitempty"`
	LastStatusCode int    `json:"last_status_code,omitempty"`
	LastError      string `json:"last_error,omitempty"`
}

func newListedTask(rec *task.Record) listedTask {
	last := rec.LastAttempt()
	t := listedTask{
		Task: rec.Task, Route: rec.Route, Reason: reason(rec),
		LastStatusCode: last.StatusCode, LastError: cmp.Or(last.Error, rec.Error),
	}
	t.Method, t.Path, t.RequestSize = rec.Line()
	return t
}

// brief returns a task for a list, without the responses of receivers.
func brief(rec *task.Record) listedTask {
	t := newListedTask(rec)
	t.Attempts = slices.Clone(t.Attempts)
	for i := range t.Attempts {
		t.Attempts[i].Response = ""
	}
	return t
}

// reason returns why a callback is not delivered, or otherwise why the task failed.
func reason(rec *task.Record) string {
	last := rec.LastAttempt()
	undelivered := rec.State == task.Delivering || rec.State == task.Dead
	switch {
	case undelivered && last.Error != "":
		return last.Error
	case undelivered && last.StatusCode != 0 && last.StatusCode/100 != 2:
		return strings.TrimSpace(fmt.Sprint("the receiver answered ", last.StatusCode, " ", http.StatusText(last.StatusCode)))
	case rec.Error != "":
		return rec.Error
	case rec.Status == task.Failed && rec.UpstreamStatus != 0:
		return strings.TrimSpace(fmt.Sprint("the endpoint answered ", rec.UpstreamStatus, " ", http.StatusText(rec.UpstreamStatus)))
	case rec.State == task.Dead && len(rec.Attempts) == 0:
		return "no attempt was made"
	}
	return ""
}

// wholeTask is a task with all its details.
type wholeTask struct {
	listedTask
	Attempts []shownAttempt `json:"attempts,omitempty"` // replaces the attempts of listedTask
	// CallbackURL has no userinfo and no query.
	CallbackURL string       `json:"callback_url,omitempty"`
	Result      *shownResult `json:"result,omitempty"`
	Timeline    []happening  `json:"timeline"`
}

// shownResult describes a result. ContentEncoding is that of the stored bytes.
type shownResult struct {
	ContentType     string `json:"content_type,omitempty"`
	ContentEncoding string `json:"content_encoding,omitempty"`
	Size            int64  `json:"size"`
	Kept            int64  `json:"kept"`
}

// happening is a past or future event of a task.
type happening struct {
	At    time.Time `json:"at"`
	Event string    `json:"event"`
	// Fields of a verdict.
	Status         task.Verdict `json:"status,omitempty"`
	UpstreamStatus int          `json:"upstream_status,omitempty"`
	// Attempt is the number of the attempt. It restarts at 1 after a redelivery.
	Attempt    int    `json:"attempt,omitempty"`
	StatusCode int    `json:"status_code,omitempty"`
	DurationMS *int64 `json:"duration_ms,omitempty"`
	Response   string `json:"response,omitempty"`
	// Start is how often the queue's task has been started.
	Start int    `json:"start,omitempty"`
	Error string `json:"error,omitempty"`
}

// The events of a timeline.
const (
	eventAccepted    = "accepted"
	eventStarted     = "started"
	eventNextStart   = "next_start"
	eventNextPoll    = "next_poll"
	eventVerdict     = "verdict"
	eventAttempt     = "attempt"
	eventNextAttempt = "next_attempt"
	eventRedelivered = "redelivered"
	eventDelivered   = "delivered"
	eventDead        = "dead"
)

func (a *API) show(c *call) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	rec, err := e.Get(c.r.Context(), c.id)
	if err != nil {
		return 0, nil, err
	}
	whole := wholeTask{listedTask: newListedTask(rec), Attempts: shownAttempts(rec), Timeline: timeline(rec)}
	if rec.Callback != nil {
		whole.CallbackURL = send.PublicURL(rec.Callback.URL)
	}
	if r := rec.Result; r != nil {
		whole.Result = &shownResult{r.ContentType, r.ContentEncoding, r.Size, r.Kept}
	}
	return http.StatusOK, whole, nil
}

// timeline returns the events of a task in order.
func timeline(rec *task.Record) []happening {
	events := []happening{{At: rec.CreatedAt, Event: eventAccepted}}
	add := func(at time.Time, h happening) {
		if !at.IsZero() {
			h.At = at
			events = append(events, h)
		}
	}
	if rec.Poll == nil {
		add(rec.StartedAt, happening{Event: eventStarted, Start: rec.Starts})
	} else {
		add(rec.Poll.StartedAt, happening{Event: eventStarted})
	}
	if rec.Ended() {
		add(rec.FinishedAt, happening{
			Event: eventVerdict, Status: rec.Status, UpstreamStatus: rec.UpstreamStatus, Error: rec.Error,
		})
	}
	for _, at := range rec.Redelivered {
		add(at, happening{Event: eventRedelivered})
	}
	for i, number := range attemptNumbers(rec) {
		attempt := rec.Attempts[i]
		add(attempt.At, happening{
			Event: eventAttempt, Attempt: number, StatusCode: attempt.StatusCode,
			DurationMS: &attempt.DurationMS, Error: attempt.Error, Response: attempt.Response,
		})
	}
	add(rec.DeliveredAt, happening{Event: eventDelivered})
	switch {
	case rec.State == task.Dead:
		given := rec.FinishedAt
		if n := len(rec.Attempts); n > 0 {
			last := rec.Attempts[n-1]
			given = last.At.Add(time.Duration(last.DurationMS) * time.Millisecond)
		}
		add(given, happening{Event: eventDead})
	case rec.Ended():
		add(rec.NextAttemptAt, happening{Event: eventNextAttempt})
	case rec.Poll != nil:
		add(rec.NextAttemptAt, happening{Event: eventNextPoll})
	default:
		add(rec.NextAttemptAt, happening{Event: eventNextStart, Start: rec.Starts + 1})
	}
	slices.SortStableFunc(events, func(a, b happening) int { return cmp.Compare(a.At.UnixNano(), b.At.UnixNano()) })
	return events
}

// attemptNumbers returns the numbers that the stored attempts had in their callbacks.
// They restart at 1 after each redelivery.
func attemptNumbers(rec *task.Record) []int {
	numbers := make([]int, len(rec.Attempts))
	var since time.Time // time of the last redelivery
	if n := len(rec.Redelivered); n > 0 {
		since = rec.Redelivered[n-1]
	}
	number, redelivered := 0, 0
	for i, attempt := range rec.Attempts {
		for redelivered < len(rec.Redelivered) && !attempt.At.Before(rec.Redelivered[redelivered]) {
			redelivered++
			number = 0
		}
		number++
		numbers[i] = number
		// The record has the number of the latest attempt, however many were dropped.
		if !attempt.At.Before(since) {
			numbers[i] = max(number, rec.Tries-(len(rec.Attempts)-1-i))
		}
	}
	return numbers
}
