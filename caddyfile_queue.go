package callback

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-callback/caddy-callback/internal/profile"
)

// parseTaskQueue parses
//
//	task_queue [<matcher>] <name> {
//	    callback [<url>] { … } | off
//	    profile  openfaas|beam2
//	    poll     { … }
//	    <directives…>
//	}
//
// callback has the options of the directive of that name, poll those that parsePoll
// parses. The other directives are the task: they run later, as in a `handle` block. A
// path matcher without `*` also matches the paths below it, where tasks are looked up.
func parseTaskQueue(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	matchers, path, err := matchersBelow(h)
	if err != nil {
		return nil, err
	}
	h.Next()
	if !h.NextArg() {
		return nil, h.Err("task_queue takes the name of a queue")
	}
	q := &TaskQueue{Name: h.Val()}
	if !isQueueName(q.Name) {
		return nil, h.Errf("task_queue: %q is not made of letters, digits, - and _ (at most %d)", q.Name, maxQueueName)
	}
	h.Delete()
	if err := q.takeOptions(h.Dispenser); err != nil {
		return nil, err
	}
	// The rest is a block like that of handle.
	h.Reset()
	defer inBlockOf(h, q.Name)()
	block, err := httpcaddyfile.ParseSegmentAsSubroute(h)
	if err != nil {
		return nil, err
	}
	routes, ok := block.(*caddyhttp.Subroute)
	if !ok || len(routes.Routes) == 0 {
		return nil, h.Errf("task_queue %s: the block is empty; write the directives that tasks run into it", q.Name)
	}
	q.Routes = routes.Routes
	h.Reset()
	h.Next() // errors name the line of the directive
	if err := blockOf(h).addQueue(h, q, path); err != nil {
		return nil, err
	}
	return h.NewRoute(matchers, q), addQueueName(h, q)
}

// matchersBelow parses the matcher of a directive that serves look-ups of tasks. It also
// returns the matcher's path if that has no `*`. Such a matcher also matches the paths
// below it.
func matchersBelow(h httpcaddyfile.Helper) (matchers caddy.ModuleMap, path string, err error) {
	h.Next() // the directive's name
	if h.NextArg() && strings.HasPrefix(h.Val(), "/") && !strings.Contains(h.Val(), "*") {
		path = h.Val()
	}
	h.Reset()
	h.Next()
	if matchers, err = h.ExtractMatcherSet(); err != nil {
		return nil, "", err
	}
	if path != "" {
		matchers["path"] = h.JSON(caddyhttp.MatchPath{path, strings.TrimSuffix(path, "/") + "/*"})
	}
	return matchers, path, nil
}

// takeOptions parses the options in the block that follows, and removes them from the
// directives.
func (q *TaskQueue) takeOptions(d *caddyfile.Dispenser) error {
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if option != "callback" && option != "profile" && option != "poll" {
			d.NextSegment()
			continue
		}
		if seen[option] {
			return d.Errf("task_queue: %s is given twice", option)
		}
		seen[option] = true
		segment := d.NextSegment()
		var err error
		switch d := caddyfile.NewDispenser(segment); option {
		case "profile":
			err = parseProfile(&q.Profile, d)
		case "poll":
			err = q.parsePoll(d)
		default:
			err = q.parseCallback(d)
		}
		if err != nil {
			return err
		}
		if q.Profile != "" && q.Callback != nil && q.Callback.Profile != "" && q.Callback.Profile != q.Profile {
			return d.Errf("task_queue: the profiles of the queue, %s, and of its callback, %s, differ; one of them is enough", q.Profile, q.Callback.Profile)
		}
		d.DeleteN(len(segment))
	}
	return nil
}

func parseProfile(to *string, d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if err := oneOf(to, profile.Names()...)(d); err != nil {
		return err
	}
	if d.NextBlock(d.Nesting()) {
		return d.Err("task_queue: profile takes no block")
	}
	return nil
}

// parseCallback parses the callback options of a queue.
func (q *TaskQueue) parseCallback(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() && d.Val() == "off" {
		if d.NextArg() || d.NextBlock(d.Nesting()) {
			return d.Errf("callback off takes no value and no block; unexpected %q", d.Val())
		}
		q.NoCallback = true
		return nil
	}
	d.Reset()
	q.Callback = new(Handler)
	return q.Callback.UnmarshalCaddyfile(d)
}

// block has the directives of one block of a Caddyfile that affect each other.
type block struct {
	id       blockID
	callback string // the place of a callback with a URL or options
	queues   []blockQueue
}

// blockQueue is a task_queue of a block.
type blockQueue struct {
	name, place string
	path        string // the matcher, if it is a path without *
	plain       bool   // it has no callback options
}

// blockID identifies a block. Nested blocks share the state of the outer block, or copy
// it, and all sites share one state.
type blockID struct{ state, site uintptr }

const blockKey, queueKey, namesKey = "callback.block", "callback.queue", "callback.names"

// blockOf returns the block that a directive is in.
func blockOf(h httpcaddyfile.Helper) *block {
	// The helper does not export its site. If another version of Caddy keeps it
	// elsewhere, an empty block is returned, so that blocks of different sites are not
	// mixed up.
	site := reflect.ValueOf(h).FieldByName("parentBlock")
	if site.Kind() != reflect.Struct || site.FieldByName("Segments").Kind() != reflect.Slice {
		return new(block)
	}
	id := blockID{reflect.ValueOf(h.BlockState).Pointer(), site.FieldByName("Segments").Pointer()}
	if known, ok := h.BlockState[blockKey].(*block); ok && known.id == id {
		return known
	}
	b := &block{id: id}
	h.BlockState[blockKey] = b
	return b
}

// placeOf returns the file and line of the directive.
func placeOf(h httpcaddyfile.Helper) string {
	h.Reset()
	h.Next()
	return fmt.Sprintf("%s:%d", h.File(), h.Line())
}

// addCallback adds a callback directive. It refuses one that seems to be meant for a
// queue beside it.
func (b *block) addCallback(h httpcaddyfile.Helper, handler *Handler) error {
	place := placeOf(h)
	if queue, ok := h.BlockState[queueKey].(string); ok {
		return h.Errf("callback is within the block of task_queue %s; a queue has one callback, in its own block and without a matcher", queue)
	}
	if string(h.JSON(handler)) == "{}" {
		return nil
	}
	b.callback = place
	for _, q := range b.queues {
		if q.plain {
			return h.Errf("callback: its URL and options do not apply to task_queue %s at %s; move them, or write callback without options, into its block", q.name, q.place)
		}
	}
	return nil
}

// addQueue adds a task_queue directive. It refuses one beside a callback that seems to
// be meant for it, and one whose requests an earlier queue takes.
func (b *block) addQueue(h httpcaddyfile.Helper, q *TaskQueue, path string) error {
	plain := q.Callback == nil && !q.NoCallback && q.Profile == ""
	if plain && b.callback != "" {
		return h.Errf("task_queue %s: the URL and options of the callback at %s do not apply to the queue; move them, or write callback without options, into its block", q.Name, b.callback)
	}
	for _, other := range b.queues {
		if path != "" && other.path != "" && strings.HasPrefix(path, strings.TrimSuffix(other.path, "/")+"/") {
			return h.Errf("task_queue %s: its requests go to task_queue %s at %s; put that after this one", q.Name, other.name, other.place)
		}
	}
	b.queues = append(b.queues, blockQueue{q.Name, placeOf(h), path, plain})
	return nil
}

// inBlockOf records, until end is called, that directives are inside the block of a
// queue.
func inBlockOf(h httpcaddyfile.Helper, queue string) (end func()) {
	before := h.BlockState[queueKey]
	h.BlockState[queueKey] = queue
	return func() { h.BlockState[queueKey] = before }
}

// namedQueue is the first block with a queue's name, and its place.
type namedQueue struct{ json, place string }

// addQueueName refuses a name that another block uses.
func addQueueName(h httpcaddyfile.Helper, q *TaskQueue) error {
	names, ok := h.State[namesKey].(map[string]namedQueue)
	if !ok {
		names = make(map[string]namedQueue)
		h.State[namesKey] = names
	}
	first, json := names[q.Name], string(h.JSON(q))
	if first.json != "" && first.json != json {
		return h.Errf("task_queue: the queue %s is defined at %s with another block; give one of them another name", q.Name, first.place)
	}
	if first.json == "" {
		names[q.Name] = namedQueue{json, placeOf(h)}
	}
	return nil
}

// parseQueue parses the global options of a queue
//
//	queue <name> {
//	    workers           <n>
//	    attempts          <n> [<status…>]
//	    max_queued        <n>
//	    rate              <n>/<duration>
//	    max_delay         <duration>
//	    idempotency_scope <text>
//	    schedule          <cron|@every d> [<tz>] {
//	        method <m>
//	        uri    <uri>
//	        header <name> <value>
//	        body   <text>
//	    }
//	}
//
// Omitted options have the defaults of [QueueOptions] and [Schedule].
func (a *App) parseQueue(d *caddyfile.Dispenser) error {
	var name string
	if !d.AllArgs(&name) {
		return d.Err("queue takes the name of a queue")
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
		"rate":              {parse: rate(&o.Rate)},
		"max_delay":         {parse: o.parseMaxDelay},
		"idempotency_scope": {parse: text(&o.IdempotencyScope), expands: true},
		"schedule":          {parse: o.parseSchedule, repeatable: true, expands: true},
	})
}

func (o *QueueOptions) parseMaxDelay(d *caddyfile.Dispenser) error {
	if err := duration(&o.MaxDelay)(d); err != nil {
		return err
	}
	if time.Duration(o.MaxDelay) > longestMaxDelay {
		return d.Errf("max_delay: %s is more than 3650 days", d.Val())
	}
	return nil
}

func (o *QueueOptions) parseAttempts(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Err("attempts takes a count and, optionally, statuses")
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
	s, option := new(Schedule), *d
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Err(`schedule takes a time such as "30 2 * * *" or "@every 10m" and, optionally, a time zone`)
	}
	s.Cron = args[0]
	rest := args[1:]
	if s.Cron == "@every" && len(rest) > 0 { // the quotes around @every 10m are optional
		s.Cron, rest = "@every "+rest[0], rest[1:]
	}
	switch len(rest) {
	case 0:
	case 1:
		s.Zone = rest[0]
	default:
		return d.Errf("schedule: unexpected %q; write cron fields in quotes", rest[1])
	}
	err := parseBlock(d, d.Nesting(), "schedule", options{
		"method": {parse: text(&s.Method), expands: true},
		"uri":    {parse: text(&s.URI), expands: true},
		"header": {parse: s.parseHeader, repeatable: true, expands: true},
		"body":   {parse: text(&s.Body), expands: true},
	})
	if err != nil {
		return err
	}
	o.Schedules = append(o.Schedules, s)
	if err := o.checkSchedules(); err != nil {
		return option.WrapErr(err)
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
