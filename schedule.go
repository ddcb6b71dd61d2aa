package callback

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // schedules name zones on machines that have no database of them

	"github.com/caddyserver/caddy/v2"
	"github.com/robfig/cron/v3"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Schedule is a clock: a task at every tick. One tick makes one task, however
// many gateways have the schedule; ticks that were missed while none ran are
// made up for by one. A tick whose predecessor still waits takes its place.
type Schedule struct {
	// When: five fields of cron (minute, hour, day of month, month, day of
	// week), `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`, or `@every`
	// and a duration of at least a second. Required.
	Cron string `json:"cron"`

	// The time zone that the fields are in, such as `Europe/Paris`. Not with
	// `@every`. Default: `UTC`.
	Zone string `json:"zone,omitempty"`

	// The request's method. Default: `POST`.
	Method string `json:"method,omitempty"`

	// The request's path and query. Default: `/`.
	URI string `json:"uri,omitempty"`

	// The request's headers; a `Host` is the request's host. Default: none; with
	// a body, `Content-Type: application/json`.
	Headers []HeaderField `json:"headers,omitempty"`

	// The request's body. If it is JSON and names a callback, that is called.
	// Default: none.
	Body string `json:"body,omitempty"`
}

var descriptors = []string{"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}

// afterStar finds a range that begins with a star, which package cron takes for the
// star, whatever it ends with.
var afterStar = regexp.MustCompile(`[*?]-[^ ,]*`)

// clock returns the schedule as the engine has it, six fields with the seconds
// first, and what tells when it ticks; nil for @every, for that depends on when it
// was begun. The engine hears of a schedule only when it starts. Its own reader of
// cron expressions is made of that of package cron: what this one takes, it takes.
func (s *Schedule) clock() (engineCron string, ticks cron.Schedule, _ error) {
	if every, ok := strings.CutPrefix(s.Cron, "@every "); ok {
		d, err := time.ParseDuration(every)
		switch {
		case err != nil || d < time.Second:
			return "", nil, fmt.Errorf("%q is not a duration of a second or more", every)
		case s.Zone != "":
			return "", nil, errors.New("@every has no time zone")
		}
		return "@every " + d.String(), nil, nil
	}
	fields := strings.Fields(s.Cron)
	isDescriptor := strings.HasPrefix(s.Cron, "@")
	switch {
	case isDescriptor && !slices.Contains(descriptors, s.Cron):
		return "", nil, fmt.Errorf("%q is none of %s, @every", s.Cron, strings.Join(descriptors, ", "))
	case !isDescriptor && len(fields) != 5: // or the first could be a time zone
		return "", nil, fmt.Errorf("%q has %d fields, not five", s.Cron, len(fields))
	}
	ticks, err := cron.ParseStandard(s.Cron)
	if err != nil {
		return "", nil, fmt.Errorf("%q: %w", s.Cron, err)
	}
	if after := afterStar.FindString(s.Cron); after != "" {
		return "", nil, fmt.Errorf("%q: %q is not a range", s.Cron, after)
	}
	if ticks.Next(time.Now()).IsZero() {
		return "", nil, fmt.Errorf("%q never ticks", s.Cron)
	}
	if isDescriptor {
		return s.Cron, ticks, nil
	}
	return "0 " + strings.Join(fields, " "), ticks, nil
}

// nextTick is when a schedule that was checked ticks next, for who wants to know
// before the engine has made the first tick. It is zero for @every.
func (s *Schedule) nextTick(now time.Time) time.Time {
	_, ticks, err := s.clock()
	zone, zoneErr := time.LoadLocation(s.Zone)
	if err != nil || zoneErr != nil || ticks == nil {
		return time.Time{}
	}
	return ticks.Next(now.In(zone)).UTC()
}

func (s *Schedule) validate() error {
	if _, _, err := s.clock(); err != nil {
		return err
	}
	if s.Zone != "" {
		if _, err := time.LoadLocation(s.Zone); err != nil {
			return fmt.Errorf("%q is not a time zone", s.Zone)
		}
	}
	if s.Method != "" && !isToken(s.Method) {
		return fmt.Errorf("%q is not a method", s.Method)
	}
	if _, err := url.ParseRequestURI(s.uri()); err != nil || !strings.HasPrefix(s.uri(), "/") {
		return fmt.Errorf("uri: %q is not a path", s.URI)
	}
	for _, field := range s.Headers {
		if !isToken(field.Name) {
			return fmt.Errorf("header: %q is not a header name", field.Name)
		}
	}
	return nil
}

func (s *Schedule) uri() string {
	if s.URI == "" {
		return "/"
	}
	return s.URI
}

// request is what a tick runs.
func (s *Schedule) request() *task.Request {
	stored := &task.Request{
		Method: s.Method, URI: s.uri(), Proto: "HTTP/1.1", Host: "localhost",
		Header: make(http.Header), RemoteAddr: "127.0.0.1:0", Size: int64(len(s.Body)),
	}
	if stored.Method == "" {
		stored.Method = http.MethodPost
	}
	for _, field := range s.Headers {
		if strings.EqualFold(field.Name, "Host") {
			stored.Host = field.Value
			continue
		}
		stored.Header.Add(field.Name, fieldValue(field.Value))
	}
	if s.Body != "" && stored.Header.Get("Content-Type") == "" {
		stored.Header.Set("Content-Type", "application/json")
	}
	return stored
}

// schedules returns the queue's schedules as the engine keeps them.
func (q *TaskQueue) schedules() ([]engine.Schedule, error) {
	var all []engine.Schedule
	for i, s := range q.opts.Schedules {
		engineCron, _, err := s.clock()
		if err != nil {
			return nil, err
		}
		rec := task.Record{Task: task.Task{Queue: q.Name}, Route: q.Name, Request: s.request(), Timeout: defaultTimeout}
		if q.newTicket().profile == profileOpenFaaS {
			rec.Request.Path = syncURI(rec.Request.URI)
		}
		if q.front != nil {
			rec.Timeout = time.Duration(q.front.Timeout)
			rec.Callback, rec.CallbackHost, err = q.front.callbackOfSchedule(s, rec.Request)
			if err != nil {
				return nil, fmt.Errorf("schedule of the queue %s: %w", q.Name, err)
			}
		}
		// The name stands for all that the schedule says: what is unchanged keeps
		// its place, what is changed is another schedule.
		told, err := json.Marshal([]any{i, s, rec.Callback, rec.Timeout})
		if err != nil {
			return nil, fmt.Errorf("naming a schedule: %w", err)
		}
		sum := sha256.Sum256(told)
		rec.Seed = rand.Text()
		all = append(all, engine.Schedule{
			Queue: q.Name, Name: strconv.Itoa(i) + "-" + hex.EncodeToString(sum[:8]),
			Cron: engineCron, Zone: s.Zone, Record: rec, Body: []byte(s.Body),
		})
	}
	return all, nil
}

// callbackOfSchedule returns what a scheduled request is owed: the callback that
// its body names, or the route's own.
func (h *Handler) callbackOfSchedule(s *Schedule, stored *task.Request) (*task.Callback, string, error) {
	r, err := http.NewRequest(stored.Method, stored.URI, strings.NewReader(s.Body))
	if err != nil {
		return nil, "", err
	}
	r.Header = stored.Header
	target, host, trusted, own := h.URL, h.own, true, true
	named, _, err := h.urlOf(nil, r)
	if err != nil {
		return nil, "", err
	}
	if named != "" {
		// The operator wrote it.
		u, err := h.app.Delivery.trusted.CheckURL(named)
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", h.source(), err)
		}
		target, host, own = u.String(), safedial.HostPort(u), false
	}
	if target == "" {
		return nil, "", nil
	}
	callback := h.newCallback(target, trusted, r.URL.Path)
	if !h.sendsHeaders(own) {
		return callback, host, nil
	}
	repl := caddy.NewReplacer() // there is no request whose placeholders could expand
	for _, field := range h.Headers {
		callback.Header = append(callback.Header, [2]string{field.Name, fieldValue(repl.ReplaceAll(field.Value, ""))})
	}
	return callback, host, nil
}

// warnOfIdleSchedules tells the operator of schedules whose queue nobody runs.
func (a *App) warnOfIdleSchedules() {
	for name, opts := range a.Queues {
		if len(opts.Schedules) > 0 && a.queues[name] == nil {
			a.log.Warn("the queue has schedules but no task_queue; they do not run", zap.String("queue", name))
		}
	}
}
