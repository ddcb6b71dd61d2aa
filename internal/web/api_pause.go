package web

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

// pausing pauses or resumes a queue.
func (a *API) pausing(c *call, paused bool) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	list, err := a.allQueues(c.r.Context(), e)
	if err != nil {
		return 0, nil, err
	}
	if !slices.ContainsFunc(list, func(q Queue) bool { return q.Name == c.id }) {
		return 0, nil, &apiError{http.StatusNotFound, "no such queue"}
	}
	return c.pause(e, engine.Target{Queue: c.id}, paused)
}

func (a *API) pauseQueue(c *call) (int, any, error)  { return a.pausing(c, true) }
func (a *API) resumeQueue(c *call) (int, any, error) { return a.pausing(c, false) }

// pausingHost pauses or resumes the deliveries to a host. The host may be unknown: you
// can pause a receiver before its first callback.
func (a *API) pausingHost(c *call, paused bool) (int, any, error) {
	host, err := safedial.ParseHostPort(c.id)
	if err != nil {
		return 0, nil, badRequest("%.300q is not a host with its port, such as c.example:443", c.id)
	}
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	return c.pause(e, engine.Target{Host: host}, paused)
}

func (a *API) pauseHost(c *call) (int, any, error)  { return a.pausingHost(c, true) }
func (a *API) resumeHost(c *call) (int, any, error) { return a.pausingHost(c, false) }

func (c *call) pause(e engine.Engine, t engine.Target, paused bool) (int, any, error) {
	if err := e.Pause(context.WithoutCancel(c.r.Context()), t, paused); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, map[string]any{"name": t.Queue + t.Host, "paused": paused}, nil
}

// runSchedule puts a task of a schedule into its queue now. The next run of the
// schedule does not change.
func (a *API) runSchedule(c *call) (int, any, error) {
	e, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	list, err := a.config.Schedules()
	if err != nil {
		return 0, nil, err
	}
	if !slices.ContainsFunc(list, func(s Schedule) bool { return s.ID == c.id }) || a.config.Run == nil {
		return 0, nil, &apiError{http.StatusNotFound, "no such schedule"}
	}
	id, created, err := a.config.Run(context.WithoutCancel(c.r.Context()), e, c.id)
	switch {
	case errors.Is(err, engine.ErrTooLarge):
		return 0, nil, &apiError{http.StatusConflict, "the schedule's request is too large to be stored"}
	case err != nil:
		return 0, nil, err
	case !created:
		return 0, nil, &apiError{http.StatusConflict, "the previous run is still queued: task " + id}
	}
	return http.StatusAccepted, map[string]string{"task_id": id}, nil
}
