package web

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// filterParams are the parameters that say which tasks are meant.
var filterParams = []string{"state", "queue", "host", "status", "older_than", "newer_than"}

var (
	states   = []task.State{task.Queued, task.Running, task.Delivering, task.Done, task.Dead}
	verdicts = []task.Verdict{task.Complete, task.Failed, task.TimedOut}
)

// filter reads which tasks are meant, and says whether anything was said.
func (c *call) filter() (f engine.Filter, said bool, err error) {
	now := time.Now()
	f.Queue, f.Host = c.query.Get("queue"), strings.ToLower(c.query.Get("host"))
	if f.States, err = oneOf("state", c.query["state"], states); err != nil {
		return f, false, err
	}
	if f.Statuses, err = oneOf("status", c.query["status"], verdicts); err != nil {
		return f, false, err
	}
	for name, at := range map[string]*time.Time{"older_than": &f.Before, "newer_than": &f.After} {
		if value := c.query.Get(name); value != "" {
			d, ok := parseAge(value)
			if !ok {
				return f, false, badRequest("%s: %.40q is not a duration such as 90s, 10m, 2h or 7d", name, value)
			}
			*at = now.Add(-d)
		}
	}
	for _, name := range filterParams {
		for _, value := range c.query[name] {
			said = said || value != ""
		}
	}
	return f, said, nil
}

// oneOf reads a parameter that may be given more than once. An empty one asks
// for nothing.
func oneOf[T ~string](name string, values []string, known []T) (list []T, err error) {
	for _, value := range values {
		switch {
		case value == "":
		case !slices.Contains(known, T(value)):
			names := make([]string, len(known))
			for i, k := range known {
				names[i] = string(k)
			}
			return nil, badRequest("%s: %.40q is none of %s", name, value, strings.Join(names, ", "))
		default:
			list = append(list, T(value))
		}
	}
	return list, nil
}

// maxAgeDays keeps a number of days from overflowing a duration.
const maxAgeDays = 36500

// parseAge reads a duration as Go writes it, or a number of days: 7d.
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

// limit reads how much is wanted.
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

// maxCursor is longer than any cursor of an engine, in bytes.
const maxCursor = 4096

// cursor reads where a list goes on; empty is the beginning. Whether it is one of
// the engine's, the engine says.
func (c *call) cursor() (engine.Cursor, error) {
	value := c.query.Get("cursor")
	if len(value) > maxCursor {
		return "", engine.ErrCursor
	}
	return engine.Cursor(value), nil
}
