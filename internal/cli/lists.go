package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// listCommand is a command that prints one list of the API.
type listCommand[T any] struct {
	name, short, long string
	none              string // what is printed if the list is empty
	columns           []column
	row               func(s *screen, item *T) []cell
}

const listExits = `

Exit codes: 0 listed, 1 the gateway did not answer, 2 the command line is wrong.`

// listFlags are the flags of a list command.
type listFlags struct {
	gateway gatewayFlags
	watch   watchFlag
}

func (l *listCommand[T]) command(c *Caddy) *cobra.Command {
	f := &listFlags{gateway: gatewayFlags{caddy: c}}
	cmd := &cobra.Command{
		Use:   l.name,
		Short: l.short, Long: l.long + listExits,
		Args: c.NoArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := f.gateway.client()
			if err == nil {
				err = f.watch.run(cmd, func(s *screen) error { return l.print(cmd, client, s, f.gateway.json) })
			}
			if err != nil {
				return c.Failed(cmd, err)
			}
			return nil
		},
	}
	c.Flags(cmd)
	f.watch.add(cmd)
	f.gateway.add(cmd)
	return cmd
}

// print prints the list as a table, or as JSON with one item a line.
func (l *listCommand[T]) print(cmd *cobra.Command, client *client, s *screen, asJSON bool) error {
	var items []json.RawMessage
	if err := client.get(l.name, nil, &items); err != nil {
		return err
	}
	rows := make([][]cell, len(items))
	for i, text := range items {
		var line bytes.Buffer
		if asJSON {
			if err := json.Compact(&line, text); err != nil {
				return fmt.Errorf("reading the gateway's response: %w", err)
			}
			if _, err := fmt.Fprintln(s.out, web.TerminalJSON(line.String())); err != nil {
				return err
			}
			continue
		}
		item := new(T)
		if err := json.Unmarshal(text, item); err != nil {
			return fmt.Errorf("reading the gateway's response: %w", err)
		}
		rows[i] = l.row(s, item)
	}
	if asJSON {
		return nil
	}
	if len(items) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), l.none)
	}
	return (&table{screen: s, columns: l.columns}).print(rows)
}

// isPaused returns the cell of the column PAUSED.
func isPaused(paused bool) cell {
	if paused {
		return cell{"paused", yellow}
	}
	return cell{}
}

// listedQueue is a queue in the list of the API.
type listedQueue struct {
	Name    string    `json:"name"`
	Queued  int64     `json:"queued"`
	Delayed int64     `json:"delayed"`
	Running int64     `json:"running"`
	Oldest  time.Time `json:"oldest"`
	Paused  bool      `json:"paused"`
	Workers int       `json:"workers"`
	// RateLimited is set while tasks wait because of the rate.
	RateLimited bool `json:"rate_limited"`
}

// heldBack is why tasks or callbacks wait although nothing fails.
const heldBack = "waiting for the rate limit"

func (q *listedQueue) why() string {
	if q.RateLimited {
		return heldBack
	}
	return ""
}

func (c *Caddy) newQueuesCommand() *cobra.Command {
	list := listCommand[listedQueue]{
		name: "queues", short: "Lists queues with their backlog", none: "there are no queues",
		long: `
Lists the queues of a running gateway: how many tasks are queued, how many of them
are delayed, how many run, how long the oldest has waited, and which queues are
paused. WORKERS, and WHY ready tasks wait, are those of the gateway that is asked; the
other columns count all gateways of the store.`,
		columns: []column{
			{name: "QUEUE", elastic: true}, {name: "QUEUED"}, {name: "DELAYED"}, {name: "RUNNING"}, {name: "OLDEST"},
			{name: "WORKERS"}, {name: "PAUSED", usual: "paused"}, {name: "WHY", elastic: true, optional: true},
		},
		row: func(s *screen, q *listedQueue) []cell {
			return []cell{
				{text: q.Name}, decimal(q.Queued), decimal(q.Delayed), decimal(q.Running), {text: s.age(q.Oldest)},
				{text: strconv.Itoa(q.Workers)}, isPaused(q.Paused), {text: q.why()},
			}
		},
	}
	return list.command(c)
}

func decimal(n int64) cell { return cell{text: strconv.FormatInt(n, 10)} }

// listedHost is a host in the list of the API.
type listedHost struct {
	Host         string    `json:"host"`
	Pending      int64     `json:"pending"`
	InFlight     int64     `json:"in_flight"`
	Failures     int       `json:"failures"`
	FailingSince time.Time `json:"failing_since"`
	LastStatus   int       `json:"last_status"`
	LastError    string    `json:"last_error"`
	Paused       bool      `json:"paused"`
	RateLimited  bool      `json:"rate_limited"`
}

// why returns the reason that the host fails or that its callbacks wait, "" if there is
// none.
func (h *listedHost) why() string {
	switch {
	case h.Failures == 0 && h.RateLimited:
		return heldBack
	case h.Failures == 0:
		return ""
	case h.LastStatus > 0:
		return statusText(h.LastStatus)
	default:
		return h.LastError
	}
}

func (c *Caddy) newHostsCommand() *cobra.Command {
	list := listCommand[listedHost]{
		name: "hosts", short: "Lists hosts that callbacks wait for, and why they fail", none: "no callbacks are pending",
		long: `
Lists the hosts of a running gateway that have callbacks pending, are failing or are
paused: how many callbacks are pending and in flight, for how long the host has been
failing, how many attempts in a row have failed, and why.`,
		columns: []column{
			{name: "HOST", elastic: true}, {name: "PENDING"}, {name: "IN FLIGHT"}, {name: "FAILING"}, {name: "FAILURES"},
			{name: "PAUSED", usual: "paused", optional: true}, {name: "WHY", elastic: true},
		},
		row: func(s *screen, h *listedHost) []cell {
			c := color(0)
			if h.Failures > 0 {
				c = red
			}
			return []cell{
				{h.Host, c}, decimal(h.Pending), decimal(h.InFlight), {s.age(h.FailingSince), c},
				{text: number(h.Failures)}, isPaused(h.Paused), {text: h.why()},
			}
		},
	}
	return list.command(c)
}

// listedSchedule is a schedule in the list of the API.
type listedSchedule struct {
	ID       string    `json:"id"`
	Queue    string    `json:"queue"`
	Schedule string    `json:"schedule"`
	Timezone string    `json:"timezone"`
	Method   string    `json:"method"`
	URI      string    `json:"uri"`
	LastRun  time.Time `json:"last_run"`
	NextRun  time.Time `json:"next_run"`
}

func (c *Caddy) newSchedulesCommand() *cobra.Command {
	list := listCommand[listedSchedule]{
		name: "schedules", short: "Lists schedules, and runs one now", none: "there are no schedules",
		long: `
Lists the schedules of a running gateway (cron): which request is queued when, when it
was last, and when it will be next.`,
		columns: []column{
			{name: "ID", optional: true}, {name: "QUEUE", elastic: true}, {name: "SCHEDULE", elastic: true},
			{name: "REQUEST", elastic: true}, {name: "LAST RUN"}, {name: "NEXT RUN"},
			{name: "TIMEZONE", optional: true},
		},
		row: func(s *screen, r *listedSchedule) []cell {
			last, next := s.age(r.LastRun), ""
			if last != "" {
				last += " ago"
			}
			if !r.NextRun.IsZero() {
				next = "in " + span(r.NextRun.Sub(s.now))
			}
			return []cell{
				{text: r.ID}, {text: r.Queue}, {text: r.Schedule}, {text: r.Method + " " + r.URI},
				{text: last}, {text: next}, {text: r.Timezone},
			}
		},
	}
	cmd := list.command(c)
	cmd.AddCommand(c.newScheduleRunCommand())
	return cmd
}

func (c *Caddy) newScheduleRunCommand() *cobra.Command {
	f := &gatewayFlags{caddy: c}
	cmd := &cobra.Command{
		Use:   "run <schedule>",
		Short: "Runs a schedule now",
		Long: `
Queues the request of a schedule now and prints the ID of the task. The next run of
the schedule does not change.

Exit codes: 0 queued, 1 there is no such schedule, or the gateway did not answer,
2 the command line is wrong.`,
		Example: `  caddy callback schedules run 5f0c3a`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return c.Misused(cmd, errors.New("give the ID of one schedule; `caddy callback schedules` lists them"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.runSchedule(cmd, args[0]); err != nil {
				return c.Failed(cmd, err)
			}
			return nil
		},
		ValidArgsFunction: completeOne(f.scheduleIDs),
	}
	c.Flags(cmd)
	f.add(cmd)
	return cmd
}

func (f *gatewayFlags) runSchedule(cmd *cobra.Command, id string) error {
	client, err := f.client()
	if err != nil {
		return err
	}
	var queued struct {
		ID string `json:"task_id"`
	}
	if err := client.do(http.MethodPost, "schedules/"+url.PathEscape(id)+"/run", nil, nil, &queued); err != nil {
		return err
	}
	if f.json {
		_ = json.NewEncoder(cmd.OutOrStdout()).Encode(queued) // the task is queued, even if it cannot be printed
		return nil
	}
	fmt.Fprintln(cmd.OutOrStdout(), web.TerminalText(queued.ID))
	return nil
}
