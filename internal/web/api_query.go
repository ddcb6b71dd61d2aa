package web

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// filterParams are the parameters that select tasks.
var filterParams = []string{
	"state", "status", "queue", "host", "method", "path", "route", "last_status_code", "last_error", "id",
	"older_than", "newer_than", "before", "after_time",
}

// bulkParams are the parameters of an action on many tasks.
var bulkParams = append([]string{"after", "dry_run"}, filterParams...)

var (
	states   = []task.State{task.Queued, task.Running, task.Delivering, task.Done, task.Dead}
	verdicts = []task.Verdict{task.Complete, task.Failed, task.TimedOut}
)

// filter reads the filter of the query. given is false if the query has none.
func (c *call) filter() (f engine.Filter, given bool, err error) {
	f.Queue, f.Host, f.Route = c.query.Get("queue"), strings.ToLower(c.query.Get("host")), c.query.Get("route")
	if ascii, err := httpguts.PunycodeHostPort(f.Host); err == nil {
		f.Host = ascii // as callbacks are stored
	}
	f.Method, f.Path, f.LastError = c.query.Get("method"), c.query.Get("path"), c.query.Get("last_error")
	if f.IDPrefix = c.query.Get("id"); f.IDPrefix != "" && !isID(f.IDPrefix) {
		return f, false, badRequest("id: %.40q is not the beginning of a task's ID", f.IDPrefix)
	}
	if code := c.query.Get("last_status_code"); code != "" {
		if f.LastStatusCode, err = strconv.Atoi(code); err != nil || f.LastStatusCode < 100 || f.LastStatusCode > 999 {
			return f, false, badRequest("last_status_code: %.40q is not a status code", code)
		}
	}
	if f.States, err = oneOf("state", c.query["state"], states); err != nil {
		return f, false, err
	}
	if f.Statuses, err = oneOf("status", c.query["status"], verdicts); err != nil {
		return f, false, err
	}
	if err := c.timeRange(&f); err != nil {
		return f, false, err
	}
	for _, name := range filterParams {
		for _, value := range c.query[name] {
			given = given || value != ""
		}
	}
	return f, given, nil
}

// timeRange reads the bounds of the acceptance time. If a bound is given in two ways,
// the narrower one applies.
func (c *call) timeRange(f *engine.Filter) error {
	now := time.Now()
	for _, bound := range []struct {
		age, time string
		at        *time.Time
		narrower  func(t, u time.Time) bool
	}{
		{"older_than", "before", &f.Before, time.Time.Before},
		{"newer_than", "after_time", &f.After, time.Time.After},
	} {
		if value := c.query.Get(bound.age); value != "" {
			d, ok := parseAge(value)
			if !ok {
				return badRequest("%s: %.40q is not a duration such as 90s, 10m, 2h or 7d", bound.age, value)
			}
			*bound.at = now.Add(-d)
		}
		if value := c.query.Get(bound.time); value != "" {
			t, err := time.Parse(time.RFC3339, value)
			if err != nil || t.Year() < 1970 || t.Year() > 2200 {
				return badRequest("%s: %.40q is not a time such as 2026-11-30T08:00:00Z", bound.time, value)
			}
			if bound.at.IsZero() || bound.narrower(t, *bound.at) {
				*bound.at = t
			}
		}
	}
	return nil
}

// oneOf reads a parameter that may be repeated. An empty value is ignored.
func oneOf[T ~string](name string, values []string, known []T) (list []T, err error) {
	for _, value := range values {
		switch {
		case value == "":
		case !slices.Contains(known, T(value)):
			names := make([]string, len(known))
			for i, k := range known {
				names[i] = string(k)
			}
			return nil, badRequest("%s: %.40q is not one of %s", name, value, strings.Join(names, ", "))
		default:
			list = append(list, T(value))
		}
	}
	return list, nil
}

// maxAgeDays keeps a number of days from overflowing a duration.
const maxAgeDays = 36500

// parseAge reads a duration in Go's syntax, or a number of days such as 7d.
func parseAge(s string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || !(n >= 0 && n <= maxAgeDays) {
			return 0, false
		}
		return time.Duration(n * float64(24*time.Hour)), true
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}

const (
	defaultLimit = 50
	maxLimit     = 1000
)

// limit reads the size of a page.
func (c *call) limit(standard int) (int, error) {
	value := c.query.Get("limit")
	if value == "" {
		return standard, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 1 || n > maxLimit {
		return 0, badRequest("limit: %.40q is not a number from 1 to %d", value, maxLimit)
	}
	return n, nil
}

// maxCursor is an upper bound of the length of an engine's cursor, in bytes.
const maxCursor = 4096

// cursor reads the position at which a list continues; empty is the start. The engine
// checks the cursor itself.
func (c *call) cursor() (engine.Cursor, error) {
	value := c.query.Get("after")
	if len(value) > maxCursor {
		return "", engine.ErrCursor
	}
	return engine.Cursor(value), nil
}
