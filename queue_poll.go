package callback

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/poll"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// PollOptions describe an endpoint that accepts a request and answers it later: the
// gateway polls it, through the queue's routes, until the answer is final. That answer is
// the task's result.
type PollOptions struct {
	// Where an answer names the URL to poll. Default: the header `Location`.
	Location *PollSource `json:"location,omitempty"`

	// The answers after which the endpoint is polled again; one is enough. The answer to
	// the task's request is also one of them if its status is 202. Default: those with
	// the status 202.
	Pending []*PollCondition `json:"pending,omitempty"`

	// The answers with which the task is FAILED although their status is below 400. They
	// are checked before `pending`. Default: none.
	Failed []*PollCondition `json:"failed,omitempty"`

	// Where the final answer names the URL of the result. Default: the final answer
	// itself is the result.
	Result *PollSource `json:"result,omitempty"`

	// The wait before the first poll. Each further one is half as long again. The
	// endpoint's `Retry-After` takes precedence. Default: `2s`.
	Interval caddy.Duration `json:"interval,omitempty"`

	// The longest wait between two polls. Default: `1m`, or the interval if that is
	// longer.
	LongestInterval caddy.Duration `json:"longest_interval,omitempty"`

	// The hosts, with or without a port, to which a location can lead, in addition to the
	// host of the task's request. Default: none.
	Hosts []string `json:"hosts,omitempty"`

	// The headers of the task's request that polls repeat. They are stored until the
	// verdict. Default: none.
	KeepHeaders []string `json:"keep_headers,omitempty"`
}

// PollSource is a place in an answer. One of its fields is set.
type PollSource struct {
	// The name of a header. Default: none.
	Header string `json:"header,omitempty"`

	// The path of a string in a JSON body, in the syntax of gjson. Default: none.
	JSON string `json:"json,omitempty"`
}

// PollCondition is met by answers with a status, or with a value in their JSON body.
// Either Status is set, or JSON and Values.
type PollCondition struct {
	// The statuses. Default: none.
	Status []int `json:"status,omitempty"`

	// The path of a value in a JSON body, in the syntax of gjson. Default: none.
	JSON string `json:"json,omitempty"`

	// The values. Default: none.
	Values []string `json:"values,omitempty"`
}

// Defaults of PollOptions.
const (
	defaultPollHeader      = "Location"
	defaultPollInterval    = 2 * time.Second
	defaultLongestInterval = time.Minute
	minPollInterval        = 10 * time.Millisecond
)

// rules returns the rules that the options describe. Tasks can be polled by a queue
// whose options were removed meanwhile: o may be nil.
func (o *PollOptions) rules() *poll.Rules {
	if o == nil {
		o = new(PollOptions)
	}
	r := &poll.Rules{
		Location: poll.Source{Header: defaultPollHeader}, Pending: pollConditions(o.Pending), Failed: pollConditions(o.Failed),
		Hosts: o.Hosts, Interval: time.Duration(o.Interval), Longest: time.Duration(o.LongestInterval),
	}
	if o.Location != nil {
		r.Location = poll.Source(*o.Location)
	}
	if o.Result != nil {
		r.Result = poll.Source(*o.Result)
	}
	if len(r.Pending) == 0 {
		r.Pending = []poll.Condition{{Status: []int{http.StatusAccepted}}}
	}
	setDefault(&r.Interval, defaultPollInterval)
	setDefault(&r.Longest, max(defaultLongestInterval, r.Interval))
	return r
}

func pollConditions(options []*PollCondition) (all []poll.Condition) {
	for _, c := range options {
		all = append(all, poll.Condition(*c))
	}
	return all
}

// validate checks the options. o may be nil.
func (o *PollOptions) validate() error {
	if o == nil {
		return nil
	}
	for name, s := range map[string]*PollSource{"location": o.Location, "result": o.Result} {
		if s != nil && (s.Header == "") == (s.JSON == "") {
			return fmt.Errorf("%s: one of header and json must be set", name)
		}
	}
	for _, c := range slices.Concat(o.Pending, o.Failed) {
		if (len(c.Status) == 0) == (c.JSON == "") || (c.JSON == "") != (len(c.Values) == 0) {
			return errors.New("pending, failed: a condition has either status, or json and values")
		}
	}
	if err := errors.Join(poll.CheckHosts(o.Hosts), checkHeaderNames(o.KeepHeaders)); err != nil {
		return err
	}
	r := o.rules()
	if r.Interval < minPollInterval {
		return fmt.Errorf("interval: %v is shorter than %v", r.Interval, minPollInterval)
	}
	if r.Longest < r.Interval {
		return fmt.Errorf("interval: the longest, %v, is shorter than the first, %v", r.Longest, r.Interval)
	}
	return nil
}

// parsePoll parses
//
//	poll {
//	    location     header <name> | json <path>
//	    pending      status <code…> | json <path> <value…>
//	    failed       json <path> <value…>
//	    result       header <name> | json <path>
//	    interval     <duration> [<longest>]
//	    hosts        <host…>
//	    keep_headers <name…>
//	}
//
// pending and failed can occur several times. Omitted options have the defaults of
// [PollOptions].
func (q *TaskQueue) parsePoll(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return d.Errf("poll takes a block and no value; unexpected %q", d.Val())
	}
	o := new(PollOptions)
	q.Poll = o
	return parseBlock(d, d.Nesting(), "poll", options{
		"location":     {parse: pollSource(&o.Location)},
		"pending":      {parse: pollCondition(&o.Pending, "status", "json"), repeatable: true},
		"failed":       {parse: pollCondition(&o.Failed, "json"), repeatable: true},
		"result":       {parse: pollSource(&o.Result)},
		"interval":     {parse: o.parseInterval},
		"hosts":        {parse: words(&o.Hosts, poll.CheckHosts)},
		"keep_headers": {parse: words(&o.KeepHeaders, checkHeaderNames)},
	})
}

// pollSource parses header <name> or json <path>.
func pollSource(field **PollSource) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name, args := d.Val(), d.RemainingArgs()
		switch {
		case len(args) != 2 || args[0] != "header" && args[0] != "json":
			return d.Errf("%s takes header and a name, or json and a path", name)
		case args[1] == "":
			return d.Errf("%s %s: the value is empty", name, args[0])
		case args[0] == "json":
			*field = &PollSource{JSON: args[1]}
		case !httpguts.ValidHeaderFieldName(args[1]):
			return d.Errf("%s: %q is not a header name", name, args[1])
		default:
			*field = &PollSource{Header: args[1]}
		}
		return nil
	}
}

// pollCondition parses status <code…> or json <path> <value…>, and appends it.
func pollCondition(field *[]*PollCondition, kinds ...string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name, args := d.Val(), d.RemainingArgs()
		switch {
		case len(args) == 0 || !slices.Contains(kinds, args[0]):
			return d.Errf("%s takes %s", name, pollConditionWords(kinds))
		case args[0] == "json" && len(args) < 3:
			return d.Errf("%s json takes a path and one or more values", name)
		case args[0] == "json" && args[1] == "":
			return d.Errf("%s json: the path is empty", name)
		case args[0] == "json":
			*field = append(*field, &PollCondition{JSON: args[1], Values: args[2:]})
			return nil
		case len(args) < 2:
			return d.Errf("%s status takes one or more statuses", name)
		}
		c := new(PollCondition)
		for _, arg := range args[1:] {
			n, err := strconv.Atoi(arg)
			if err != nil || n < 200 || n > 499 {
				return d.Errf("%s: %q is not a status from 200 to 499", name, arg)
			}
			c.Status = append(c.Status, n)
		}
		*field = append(*field, c)
		return nil
	}
}

func pollConditionWords(kinds []string) string {
	const json = "json, a path and values"
	if slices.Contains(kinds, "status") {
		return "status and statuses, or " + json
	}
	return json
}

func (o *PollOptions) parseInterval(d *caddyfile.Dispenser) error {
	name := d.Val()
	if args := d.CountRemainingArgs(); args < 1 || args > 2 {
		return d.Errf("%s takes a duration and an optional longest one, not %d values", name, args)
	}
	d.NextArg()
	err := setDuration(d, name, &o.Interval)
	if err == nil && time.Duration(o.Interval) < minPollInterval {
		err = d.Errf("%s: %s is shorter than %v", name, d.Val(), minPollInterval)
	}
	if err != nil || !d.NextArg() {
		return err
	}
	if err := setDuration(d, name, &o.LongestInterval); err != nil {
		return err
	}
	if o.LongestInterval < o.Interval {
		return d.Errf("%s: the longest, %s, is shorter than the first", name, d.Val())
	}
	return nil
}

// checkHeaderNames returns an error that names the first value that is no header name.
func checkHeaderNames(values []string) error {
	for _, value := range values {
		if !httpguts.ValidHeaderFieldName(value) {
			return fmt.Errorf("keep_headers: %q is not a header name", value)
		}
	}
	return nil
}

// pollAgain requeues the task of x for its next poll, if its endpoint has not answered
// finally, and reports whether it did. Otherwise x has the task's verdict.
func (q *TaskQueue) pollAgain(x *execution, body *capture.Copy) bool {
	first := x.rec.Poll == nil
	switch {
	case first && (q.Poll == nil || x.rec.Status != task.Complete), x.rec.Status == task.TimedOut, x.rec.Request == nil:
		return false
	}
	e := poll.Exchange{First: first, Home: x.rec.Request.Host, Answer: poll.Answer{
		Status: x.failedWith, Header: x.response.Header(), Body: body.Head(x.kept.Limit),
	}}
	if x.rec.Result != nil {
		e.Answer.Cut = int64(len(e.Answer.Body)) < x.rec.Result.Size
		e.Answer.Coding = x.rec.Result.ContentEncoding
		e.Answer.RetryAfter = send.ParseRetryAfter(e.Answer.Header.Get("Retry-After"), time.Now())
	}
	if first {
		e.Poll = task.Poll{StartedAt: x.rec.StartedAt, URI: x.rec.Request.BlockURI(), Host: x.rec.Request.Host}
	} else {
		e.Poll = *x.rec.Poll
	}
	step, err := q.rules.Next(e)
	if !first {
		q.app.metrics.Polled(q.Name, step.Outcome)
	}
	switch {
	case err != nil:
		q.failPoll(x, err)
	case step.Outcome == poll.Failed:
		x.rec.Status = task.Failed
	case step.Outcome != poll.Final:
		q.requeuePoll(x, first, step)
		return true
	}
	return false
}

// failPoll ends a task whose endpoint cannot be polled.
func (q *TaskQueue) failPoll(x *execution, err error) {
	q.log.Warn("endpoint cannot be polled", zap.String("task_id", x.rec.ID), zap.String("queue", q.Name), zap.Error(err))
	x.rec.Status, x.rec.Error, x.rec.Result = task.Failed, poll.Public(err).Error(), nil
}

// requeuePoll puts the task back into its queue until its next poll or, if that is
// earlier, its deadline. A poll uses no attempt.
func (q *TaskQueue) requeuePoll(x *execution, first bool, step poll.Step) {
	rec := x.rec
	rec.Poll = &step.Poll
	if first {
		// From here on, only the headers of polls are needed. The others may contain
		// credentials.
		request := *rec.Request
		request.Header = q.headerOfPolls(request.Header)
		rec.Request = &request
	} else {
		rec.Starts--
	}
	var at time.Time // at once
	if step.Wait > 0 {
		at = time.Now().Add(step.Wait).UTC()
		if deadline := rec.Poll.StartedAt.Add(rec.Timeout); deadline.Before(at) {
			at = deadline
		}
	}
	x.pending = true
	q.requeue(x, rec, at)
}

// headerOfPolls returns the fields of a request's header that polls repeat.
func (q *TaskQueue) headerOfPolls(h http.Header) http.Header {
	kept := h.Clone()
	maps.DeleteFunc(kept, func(name string, _ []string) bool {
		return !slices.ContainsFunc(q.Poll.KeepHeaders, func(keep string) bool { return http.CanonicalHeaderKey(keep) == name })
	})
	return kept
}
