package callback

import (
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// parseTaskQueue reads
//
//	task_queue [<matcher>] <name> {
//	    profile openfaas|beam2
//	    <directives…>
//	}
//
// The directives are the task; they run later, as `handle` would run them.
func parseTaskQueue(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	h.Next() // the directive's name
	matchers, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	h.Next()
	if !h.NextArg() {
		return nil, h.Err("task_queue takes the queue's name")
	}
	q := &TaskQueue{Name: h.Val()}
	if !isQueueName(q.Name) {
		return nil, h.Errf("task_queue: %q is not made of letters, digits, - and _ (at most %d)", q.Name, maxQueueName)
	}
	h.Delete()
	if err := q.takeProfile(h.Dispenser); err != nil {
		return nil, err
	}
	// What is left is a block like that of handle.
	h.Reset()
	block, err := httpcaddyfile.ParseSegmentAsSubroute(h)
	if err != nil {
		return nil, err
	}
	routes, ok := block.(*caddyhttp.Subroute)
	if !ok || len(routes.Routes) == 0 {
		return nil, h.Errf("task_queue %s: the block is empty; it is what the tasks run", q.Name)
	}
	q.Routes = routes.Routes
	return h.NewRoute(matchers, q), nil
}

// takeProfile reads the profile in the block that the dispenser stands before,
// and takes it out of the directives.
func (q *TaskQueue) takeProfile(d *caddyfile.Dispenser) error {
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "profile" {
			d.NextSegment()
			continue
		}
		if q.Profile != "" {
			return d.Err("task_queue: profile is given twice")
		}
		if err := oneOf(&q.Profile, profileNames...)(d); err != nil {
			return err
		}
		if d.NextBlock(d.Nesting()) {
			return d.Err("task_queue: profile takes no block")
		}
		d.DeleteN(2) // the word and its value
	}
	return nil
}

// parseQueue reads the global options of a queue
//
//	queue <name> {
//	    workers           <n>
//	    attempts          <n> [<status…>]
//	    max_queued        <n>
//	    idempotency_scope <text>
//	    schedule          <cron|@every d> [<tz>] {
//	        method <m>
//	        uri    <uri>
//	        header <name> <value>
//	        body   <text>
//	    }
//	}
//
// Options that are left out have the defaults of [QueueOptions] and [Schedule].
func (a *App) parseQueue(d *caddyfile.Dispenser) error {
	var name string
	if !d.AllArgs(&name) {
		return d.Err("queue takes the queue's name")
	}
	if !isQueueName(name) {
		return d.Errf("queue: %q is not made of letters, digits, - and _ (at most %d)", name, maxQueueName)
	}
	if a.Queues[name] != nil {
		return d.Errf("queue %s is defined twice", name)
	}
	if a.Queues == nil {
		a.Queues = make(map[string]*QueueOptions)
	}
	o := new(QueueOptions)
	a.Queues[name] = o
	return parseBlock(d, d.Nesting(), "queue", options{
		"workers":           {parse: count(&o.Workers)},
		"attempts":          {parse: o.parseAttempts},
		"max_queued":        {parse: count(&o.MaxQueued)},
		"idempotency_scope": {parse: text(&o.IdempotencyScope)},
		"schedule":          {parse: o.parseSchedule, repeatable: true},
	})
}

func (o *QueueOptions) parseAttempts(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Err("attempts takes a count, and may take statuses")
	}
	for i, arg := range args {
		n, err := strconv.Atoi(arg)
		switch {
		case i == 0 && (err != nil || n < 1):
			return d.Errf("attempts: %q is not a positive whole number", arg)
		case i == 0:
			o.Attempts = n
		case err != nil || n < 400 || n > 599:
			return d.Errf("attempts: %q is not a status from 400 to 599", arg)
		default:
			o.RetryStatus = append(o.RetryStatus, n)
		}
	}
	return nil
}

func (o *QueueOptions) parseSchedule(d *caddyfile.Dispenser) error {
	s := new(Schedule)
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Err(`schedule takes a time such as "30 2 * * *" or "@every 10m", and may take a time zone`)
	}
	s.Cron = args[0]
	rest := args[1:]
	if s.Cron == "@every" && len(rest) > 0 { // its two words may stand unquoted
		s.Cron, rest = "@every "+rest[0], rest[1:]
	}
	switch len(rest) {
	case 0:
	case 1:
		s.Zone = rest[0]
	default:
		return d.Errf("schedule: %q is one too many; cron fields go in quotes", rest[1])
	}
	err := parseBlock(d, d.Nesting(), "schedule", options{
		"method": {parse: text(&s.Method)},
		"uri":    {parse: text(&s.URI)},
		"header": {parse: s.parseHeader, repeatable: true},
		"body":   {parse: text(&s.Body)},
	})
	if err != nil {
		return err
	}
	o.Schedules = append(o.Schedules, s)
	if err := o.validateSchedules(); err != nil {
		return d.Errf("%v", err)
	}
	return nil
}

func (s *Schedule) parseHeader(d *caddyfile.Dispenser) error {
	var field HeaderField
	if !d.AllArgs(&field.Name, &field.Value) {
		return d.Err("header takes a name and a value")
	}
	s.Headers = append(s.Headers, field)
	return nil
}
