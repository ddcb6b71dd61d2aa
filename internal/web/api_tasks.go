package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// taskPage is a page of a list.
type taskPage struct {
	Tasks   []task.Task `json:"tasks"`
	Next    string      `json:"next,omitempty"`
	Scanned int         `json:"scanned"`
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
	page := taskPage{Tasks: make([]task.Task, 0, len(found.Tasks)), Next: string(found.Next), Scanned: found.Scanned}
	for _, rec := range found.Tasks {
		page.Tasks = append(page.Tasks, brief(rec))
	}
	return http.StatusOK, page, nil
}

// brief is a task in a list: without what receivers answered.
func brief(rec *task.Record) task.Task {
	doc := rec.Task
	doc.Attempts = slices.Clone(doc.Attempts)
	for i := range doc.Attempts {
		doc.Attempts[i].Response = ""
	}
	return doc
}

// wholeTask is a task with all that happened to it.
type wholeTask struct {
	task.Task
	Timeline []happening `json:"timeline"`
}

// happening is something that happened to a task, or is to happen.
type happening struct {
	At    time.Time `json:"at"`
	Event string    `json:"event"`
	// Of a verdict.
	Status         task.Verdict `json:"status,omitempty"`
	UpstreamStatus int          `json:"upstream_status,omitempty"`
	// Attempt counts the attempts, and those after a redelivery anew.
	Attempt    int    `json:"attempt,omitempty"`
	StatusCode int    `json:"status_code,omitempty"`
	DurationMS *int64 `json:"duration_ms,omitempty"`
	Response   string `json:"response,omitempty"`
	// Start counts how often a queue's task was begun.
	Start int    `json:"start,omitempty"`
	Error string `json:"error,omitempty"`
}

// The events of a timeline.
const (
	eventAccepted    = "accepted"
	eventStarted     = "started"
	eventNextStart   = "next_start"
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
	return http.StatusOK, wholeTask{rec.Task, timeline(rec)}, nil
}

// timeline is what happened to a task, in its order.
func timeline(rec *task.Record) []happening {
	events := []happening{{At: rec.CreatedAt, Event: eventAccepted}}
	add := func(at time.Time, h happening) {
		if !at.IsZero() {
			h.At = at
			events = append(events, h)
		}
	}
	add(rec.StartedAt, happening{Event: eventStarted, Start: rec.Starts})
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
	default:
		add(rec.NextAttemptAt, happening{Event: eventNextStart, Start: rec.Starts + 1})
	}
	slices.SortStableFunc(events, func(a, b happening) int { return cmp.Compare(a.At.UnixNano(), b.At.UnixNano()) })
	return events
}

// attemptNumbers numbers the attempts that are remembered as their callbacks
// were: after each redelivery from 1.
func attemptNumbers(rec *task.Record) []int {
	numbers := make([]int, len(rec.Attempts))
	var since time.Time // of the last redelivery
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
		// Of the latest the record knows the number, however many were forgotten.
		if !attempt.At.Before(since) {
			numbers[i] = max(number, rec.Tries-(len(rec.Attempts)-1-i))
		}
	}
	return numbers
}

// errCanceled is what the callback of a canceled task says, as on its queue's
// path.
const errCanceled = "canceled"

// action is something that is done to tasks by hand.
type action struct {
	engine.Action
	possible []task.State // in which it applies
	status   int          // of the answer
}

var (
	doRedeliver = action{engine.Action{Kind: engine.Redeliver}, []task.State{task.Dead, task.Done}, http.StatusAccepted}
	doCancel    = action{
		engine.Action{Kind: engine.Cancel, Reason: errCanceled}, []task.State{task.Queued, task.Running}, http.StatusAccepted,
	}
	doDelete = action{engine.Action{Kind: engine.Delete}, []task.State{task.Dead, task.Done}, http.StatusNoContent}
)

// refusal says why a task is not changed: err is an ErrEnded.
func (do *action) refusal(err error) string {
	switch {
	case errors.Is(err, engine.ErrNotKept):
		return "the task's result is not kept, so that its callback cannot be delivered again"
	case do.Kind == engine.Cancel:
		return "the task has ended"
	default:
		return fmt.Sprintf("the task is neither %s nor %s", do.possible[0], do.possible[1])
	}
}

func (a *API) redeliver(c *call) (int, any, error) { return a.act(c, doRedeliver) }
func (a *API) cancel(c *call) (int, any, error)    { return a.act(c, doCancel) }
func (a *API) purge(c *call) (int, any, error)     { return a.act(c, doDelete) }

// act does something to one task.
func (a *API) act(c *call, do action) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	// A client that disconnects now has asked for it all the same.
	err = a.apply(context.WithoutCancel(c.r.Context()), e, c.id, do)
	switch {
	case errors.Is(err, engine.ErrEnded):
		return 0, nil, &apiError{http.StatusConflict, do.refusal(err)}
	case err != nil:
		return 0, nil, err
	case do.status == http.StatusNoContent:
		return do.status, nil, nil
	}
	return do.status, map[string]string{"task_id": c.id}, nil
}

// apply does something to one task.
func (a *API) apply(ctx context.Context, e engine.Engine, id string, do action) error {
	err := e.Act(ctx, id, do.Action)
	if err == nil && do.Kind == engine.Cancel && a.config.Canceled != nil {
		a.config.Canceled(ctx, e, id)
	}
	return err
}

// bulk counts what became of the tasks that match.
type bulk struct {
	Matched int `json:"matched"`
	Changed int `json:"changed"`
	Failed  int `json:"failed"`
	// Reason is that of the first that failed.
	Reason string `json:"reason,omitempty"`
	Next   string `json:"next,omitempty"`
}

const (
	// bulkPage is how many tasks are changed before the bounds below are checked.
	bulkPage = 100
	// bulkScanned, bulkMatched and bulkTime bound one request, so that it is
	// answered before a proxy gives it up.
	bulkScanned = 2000
	bulkMatched = 1000
	bulkTime    = 3 * time.Second
)

// redeliverAll redelivers done tasks only if they are asked for by their state:
// their callbacks have been delivered.
func (a *API) redeliverAll(c *call) (int, any, error) {
	if c.query.Get("state") == "" {
		return a.actOnAll(c, doRedeliver, task.Dead)
	}
	return a.actOnAll(c, doRedeliver, doRedeliver.possible...)
}

func (a *API) cancelAll(c *call) (int, any, error) {
	return a.actOnAll(c, doCancel, doCancel.possible...)
}

func (a *API) purgeAll(c *call) (int, any, error) {
	return a.actOnAll(c, doDelete, doDelete.possible...)
}

// actOnAll does something to all tasks that match, by default to those in the
// given states.
func (a *API) actOnAll(c *call, do action, standard ...task.State) (int, any, error) {
	filter, said, err := c.filter()
	switch {
	case err != nil:
		return 0, nil, err
	case !said:
		return 0, nil, badRequest("no filter is given; for all tasks of a state, name the state")
	}
	for _, state := range filter.States {
		if !slices.Contains(do.possible, state) {
			return 0, nil, badRequest("state: of tasks that are %s it cannot be done, only of %s and %s",
				state, do.possible[0], do.possible[1])
		}
	}
	if len(filter.States) == 0 {
		filter.States = standard
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
	b, scanned, begun := new(bulk), 0, time.Now()
	for b.Matched < bulkMatched && scanned < bulkScanned && time.Since(begun) < bulkTime {
		page, err := e.List(c.r.Context(), filter, cursor, bulkPage)
		if err != nil {
			return 0, nil, err
		}
		scanned += page.Scanned
		for _, rec := range page.Tasks {
			b.count(&do, a.apply(context.WithoutCancel(c.r.Context()), e, rec.ID, do))
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	b.Next = string(cursor)
	return http.StatusOK, b, nil
}

// count counts what became of one task.
func (b *bulk) count(do *action, err error) {
	b.Matched++
	if err == nil {
		b.Changed++
		return
	}
	b.Failed++
	switch {
	case b.Reason != "":
	case errors.Is(err, engine.ErrEnded):
		b.Reason = do.refusal(err)
	case errors.Is(err, engine.ErrNotFound):
		b.Reason = "the task was removed meanwhile"
	case errors.Is(err, engine.ErrFull):
		b.Reason = "the store is full"
	default:
		b.Reason = "the store does not answer at the moment"
	}
}
