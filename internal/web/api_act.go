package web

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// action is an operation of operators on tasks.
type action struct {
	engine.Action
	// possible are the states in which the action applies. standard are the states that
	// a filter without a state selects.
	possible, standard []task.State
	status             int // of the response
}

var (
	doRetry = action{
		engine.Action{Kind: engine.RetryNow}, []task.State{task.Delivering}, []task.State{task.Delivering}, http.StatusAccepted,
	}
	doStop = action{
		engine.Action{Kind: engine.Stop}, []task.State{task.Delivering}, []task.State{task.Delivering}, http.StatusAccepted,
	}
	// Done tasks are redelivered only if the filter names their state: their callbacks
	// have been delivered already.
	doRedeliver = action{
		engine.Action{Kind: engine.Redeliver}, []task.State{task.Dead, task.Done}, []task.State{task.Dead}, http.StatusAccepted,
	}
	doCancel = action{
		engine.Action{Kind: engine.Cancel, Reason: engine.ReasonCanceled},
		[]task.State{task.Queued, task.Running}, []task.State{task.Queued, task.Running}, http.StatusAccepted,
	}
	doDelete = action{
		engine.Action{Kind: engine.Delete},
		[]task.State{task.Dead, task.Done}, []task.State{task.Dead, task.Done}, http.StatusNoContent,
	}
)

// states returns the states in which the action applies, as text.
func (do *action) states() string {
	names := make([]string, len(do.possible))
	for i, state := range do.possible {
		names[i] = string(state)
	}
	return strings.Join(names, " or ")
}

// refusal says why the action does not apply to a task. It returns "" if err has another
// cause.
func (do *action) refusal(err error) string {
	switch {
	case errors.Is(err, engine.ErrPaused):
		return "the host of the callback is paused; resume it to make the next attempt"
	case !errors.Is(err, engine.ErrEnded):
		return ""
	case errors.Is(err, engine.ErrNotKept):
		return "the result is not kept, so the callback cannot be delivered again"
	case do.Kind == engine.Cancel:
		return "the task has ended"
	default:
		return "the task is not " + do.states()
	}
}

func (a *API) retry(c *call) (int, any, error)  { return a.act(c, doRetry) }
func (a *API) stop(c *call) (int, any, error)   { return a.act(c, doStop) }
func (a *API) cancel(c *call) (int, any, error) { return a.act(c, doCancel) }
func (a *API) delete(c *call) (int, any, error) { return a.act(c, doDelete) }

// redeliver delivers a callback again, to another URL if the request has one.
func (a *API) redeliver(c *call) (int, any, error) {
	var to struct {
		URL string `json:"url"`
	}
	if _, err := c.body(&to); err != nil {
		return 0, nil, err
	}
	do := doRedeliver
	if to.URL == "" {
		return a.act(c, do)
	}
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	rec, err := e.Get(c.r.Context(), c.id)
	leave()
	switch {
	case err != nil:
		return 0, nil, err
	case rec.Callback == nil:
		return 0, nil, &apiError{http.StatusConflict, "the task has no callback"}
	case a.config.CheckURL == nil:
		return 0, nil, badRequest("url: only a redelivery of named tasks can change it")
	}
	// The URL may only name destinations that the task's own URL could name.
	if do.URL, do.Host, err = a.config.CheckURL(to.URL, rec.Callback.Trusted); err != nil {
		return 0, nil, badRequest("url: %v", err)
	}
	return a.act(c, do)
}

// act applies an action to one task.
func (a *API) act(c *call, do action) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	// The action is completed even if the client disconnects now.
	err = a.apply(context.WithoutCancel(c.r.Context()), e, c.id, do)
	refusal := do.refusal(err)
	switch {
	case refusal != "":
		return 0, nil, &apiError{http.StatusConflict, refusal}
	case err != nil:
		return 0, nil, err
	case do.status == http.StatusNoContent:
		return do.status, nil, nil
	}
	return do.status, map[string]string{"task_id": c.id}, nil
}

// apply applies an action to one task.
func (a *API) apply(ctx context.Context, e engine.Engine, id string, do action) error {
	err := e.Act(ctx, id, do.Action)
	if err == nil && do.Kind == engine.Cancel && a.config.Canceled != nil {
		a.config.Canceled(ctx, e, id)
	}
	return err
}

const (
	// maxBody bounds a request's body, in bytes, to bound memory.
	maxBody = 256 << 10
	// maxIDs is how many tasks one request can name.
	maxIDs = 1000
)

// body decodes the request's JSON body into v. It reports whether there is a body.
func (c *call) body(v any) (given bool, err error) {
	text, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	switch {
	case err != nil:
		return false, badRequest("the body cannot be read, or has more than %d bytes", maxBody)
	case len(strings.TrimSpace(string(text))) == 0:
		return false, nil
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil || d.More() {
		return false, badRequest("the body is not the JSON object that openapi.json describes")
	}
	return true, nil
}

// bulk counts the outcomes of an action on many tasks.
type bulk struct {
	// Matched is how many tasks there are: those that were changed, and those that failed.
	Matched int `json:"matched"`
	Changed int `json:"changed"`
	Failed  int `json:"failed"`
	// Unknown is how many of the named tasks do not exist.
	Unknown int `json:"unknown,omitempty"`
	// Reason is the reason of the first task that was not changed.
	Reason string `json:"reason,omitempty"`
	Next   string `json:"next,omitempty"`
}

const (
	// bulkPage is how many tasks are changed between two checks of the bounds below.
	bulkPage = 100
	// bulkScanned, bulkMatched and bulkTime bound one request, so that it is answered
	// before a proxy times out.
	bulkScanned = 2000
	bulkMatched = 1000
	bulkTime    = 3 * time.Second
)

// onMany applies an action to the tasks that the request names, or to all that match
// its filter.
func onMany(do action) func(*API, *call) (int, any, error) {
	return func(a *API, c *call) (int, any, error) {
		var named struct {
			IDs []string `json:"ids"`
		}
		given, err := c.body(&named)
		if err != nil {
			return 0, nil, err
		}
		dryRun, err := c.flag("dry_run")
		if err != nil {
			return 0, nil, err
		}
		filter, filtered, err := c.filter()
		switch {
		case err != nil:
			return 0, nil, err
		case given && filtered:
			return 0, nil, badRequest("ids and a filter cannot be combined; remove one of them")
		case given:
			return a.onNamed(c, do, named.IDs, dryRun)
		case !filtered:
			return 0, nil, badRequest("no filter is given; for all tasks of a state, name the state")
		}
		return a.onMatching(c, do, filter, dryRun)
	}
}

// onNamed applies an action to the tasks with the given IDs.
func (a *API) onNamed(c *call, do action, ids []string, dryRun bool) (int, any, error) {
	switch {
	case len(ids) == 0:
		return 0, nil, badRequest("ids: the list is empty")
	case len(ids) > maxIDs:
		return 0, nil, badRequest("ids: more than %d IDs", maxIDs)
	}
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	b, ctx := new(bulk), context.WithoutCancel(c.r.Context())
	for _, id := range ids {
		switch {
		case !isID(id):
			b.count(&do, engine.ErrNotFound)
		case dryRun:
			b.try(&do, func() (*task.Record, error) { return e.Get(c.r.Context(), id) })
		default:
			b.count(&do, a.apply(ctx, e, id, do))
		}
	}
	return http.StatusOK, b, nil
}

// onMatching applies an action to all tasks that match. Without a state in the filter,
// it selects the action's standard states.
func (a *API) onMatching(c *call, do action, filter engine.Filter, dryRun bool) (int, any, error) {
	for _, state := range filter.States {
		if !slices.Contains(do.possible, state) {
			return 0, nil, badRequest("state: the tasks must be %s, not %s", do.states(), state)
		}
	}
	if len(filter.States) == 0 {
		filter.States = do.standard
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
	ctx := context.WithoutCancel(c.r.Context())
	for (dryRun || b.Matched < bulkMatched && scanned < bulkScanned) && time.Since(begun) < bulkTime {
		page, err := e.List(c.r.Context(), filter, cursor, bulkPage)
		if err != nil {
			return 0, nil, err
		}
		scanned += page.Scanned
		for _, rec := range page.Tasks {
			if dryRun {
				b.try(&do, func() (*task.Record, error) { return rec, nil })
			} else {
				b.count(&do, a.apply(ctx, e, rec.ID, do))
			}
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	b.Next = string(cursor)
	return http.StatusOK, b, nil
}

// try is count for a dry run: the task counts as matched if the action applies to it,
// and as failed otherwise.
func (b *bulk) try(do *action, get func() (*task.Record, error)) {
	rec, err := get()
	if err == nil && !slices.Contains(do.possible, rec.State) {
		err = engine.ErrEnded
	}
	if err != nil {
		b.count(do, err)
		return
	}
	b.Matched++
}

// count counts the outcome for one task.
func (b *bulk) count(do *action, err error) {
	switch {
	case errors.Is(err, engine.ErrNotFound):
		b.Unknown++
		b.Reason = cmp.Or(b.Reason, "no such task; finished tasks are removed after their retention")
		return
	case err == nil:
		b.Matched++
		b.Changed++
		return
	}
	b.Matched++
	b.Failed++
	reason := "the store does not answer"
	if errors.Is(err, engine.ErrFull) {
		reason = "the store is full"
	}
	b.Reason = cmp.Or(b.Reason, do.refusal(err), reason)
}

// flag reads a boolean parameter. It returns false if the parameter is missing.
func (c *call) flag(name string) (bool, error) {
	switch value := c.query.Get(name); value {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	default:
		return false, badRequest("%s: %.40q is neither true nor false", name, fmt.Sprint(value))
	}
}
