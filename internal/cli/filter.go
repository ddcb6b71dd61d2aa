package cli

import (
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// filter is a flag that selects tasks, and a parameter of the API.
type filter struct{ flag, meaning string }

// parameter is the API's name of the filter.
func (f filter) parameter() string { return strings.ReplaceAll(f.flag, "-", "_") }

// filters are the filters of tasks. The first two can be given several times.
var filters = []filter{
	{"state", "in this state: "},
	{"status", "with this verdict: COMPLETE, FAILED or TIMEOUT"},
	{"queue", "in this queue"},
	{"host", "with a callback to this host, with or without its port"},
	{"older-than", "accepted longer ago than this, such as 90s, 2h or 7d"},
	{"newer-than", "accepted within this time, such as 90s, 2h or 7d"},
	{"method", "with a request of this method"},
	{"path", "with a request to this path"},
	{"route", "accepted by this directive"},
	{"last-status-code", "with this status in the receiver's last response"},
	{"last-error", "with this error in the last attempt"},
	{"id", "with an ID that begins with this"},
}

// filterFlags are the flags that select tasks.
type filterFlags struct {
	lists  [2][]string
	values []string // of the other filters
}

// add adds the flags to a command whose tasks can be in the given states.
func (f *filterFlags) add(cmd *cobra.Command, gateway *gatewayFlags, states []string) {
	flags := cmd.Flags()
	f.values = make([]string, len(filters))
	for i, known := range filters {
		switch known.flag {
		case "state":
			flags.StringSliceVar(&f.lists[i], known.flag, nil, known.meaning+alternatives(states))
		case "status":
			flags.StringSliceVar(&f.lists[i], known.flag, nil, known.meaning)
		default:
			flags.StringVar(&f.values[i], known.flag, "", known.meaning)
		}
	}
	complete(cmd, "state", func() []string { return states })
	complete(cmd, "status", func() []string {
		return []string{string(task.Complete), string(task.Failed), string(task.TimedOut)}
	})
	complete(cmd, "queue", gateway.queueNames)
	complete(cmd, "host", gateway.hostNames)
}

// alternatives joins words as in "a, b or c".
func alternatives(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// query returns the flags as parameters of the API. The API validates them.
func (f *filterFlags) query() url.Values {
	query := make(url.Values)
	for i, values := range f.lists {
		for _, value := range values {
			if filters[i].flag == "status" {
				value = strings.ToUpper(value)
			}
			query.Add(filters[i].parameter(), value)
		}
	}
	for i, value := range f.values {
		if value != "" {
			query.Set(filters[i].parameter(), value)
		}
	}
	return query
}
