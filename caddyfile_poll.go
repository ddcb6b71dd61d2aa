package callback

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"golang.org/x/net/http/httpguts"
)

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
		"hosts":        {parse: words(&o.Hosts, checkHosts)},
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
	if err := setDuration(d, name, &o.Interval); err != nil || !d.NextArg() {
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
