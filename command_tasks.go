package callback

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// tasksFlags are the flags of `caddy callback tasks` as they are given.
type tasksFlags struct {
	admin  adminFlags
	filter filterFlags
	limit  int
	all    bool
}

func newTasksCommand() *cobra.Command {
	f := new(tasksFlags)
	cmd := &cobra.Command{
		Use:   "tasks [--state <state>] [--queue <name>] [--host <host>]",
		Short: "Lists the tasks of a running gateway",
		Long: `
Lists the tasks of the gateway whose admin endpoint is at --address, or the one of
--config, newest first. All filters must match. With --json, each task is one
line of JSON.

A task whose state changes while it is listed may be listed twice.

Exit codes: 0 listed, 1 the gateway did not answer, 2 the command line is wrong.`,
		Example: `  caddy callback tasks --state dead --host c.example --newer-than 1d
  caddy callback tasks --queue train --all --json | jq -r .task_id`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	cmd.SetFlagErrorFunc(usage)
	flags := cmd.Flags()
	flags.SortFlags = false
	f.filter.add(cmd, &f.admin, "")
	flags.IntVar(&f.limit, "limit", defaultListed, "how many are listed")
	flags.BoolVar(&f.all, "all", false, "list all of them")
	f.admin.add(cmd)
	return cmd
}

// noArguments refuses what is no flag.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage(cmd, fmt.Errorf("%q is neither a flag nor the value of one", args[0]))
	}
	return nil
}

const (
	// defaultListed is how many tasks are listed if nothing is said.
	defaultListed = 50
	// pageSize is how many the API gives at once.
	pageSize = 1000
)

// taskPage is a page of the API's list.
type taskPage struct {
	Tasks []json.RawMessage `json:"tasks"`
	Next  string            `json:"next"`
}

func (p *taskPage) isOurs() bool { return p.Tasks != nil }

func (f *tasksFlags) run(cmd *cobra.Command) error {
	if f.limit < 1 {
		return usage(cmd, fmt.Errorf("--limit: %d is not a positive number", f.limit))
	}
	query := f.filter.query()
	client, err := f.admin.client()
	if err != nil {
		return failed(cmd, err)
	}
	out, listed := cmd.OutOrStdout(), 0
	table := newTaskTable(out)
	for f.all || listed < f.limit {
		query.Set("limit", strconv.Itoa(pageSize))
		if !f.all {
			query.Set("limit", strconv.Itoa(min(pageSize, f.limit-listed)))
		}
		var page taskPage
		if err := client.do(http.MethodGet, "tasks", query, &page); err != nil {
			return failed(cmd, err)
		}
		if err := f.print(out, table, page.Tasks); err != nil {
			return failed(cmd, err)
		}
		listed += len(page.Tasks)
		if page.Next == "" {
			break
		}
		query.Set("after", page.Next)
		if !f.all && listed >= f.limit && !f.admin.json {
			fmt.Fprintln(cmd.ErrOrStderr(), "there are more; --limit or --all lists them")
		}
	}
	if listed == 0 && !f.admin.json {
		fmt.Fprintln(cmd.ErrOrStderr(), "there are none")
	}
	return nil
}

// print prints a page.
func (f *tasksFlags) print(out io.Writer, table *taskTable, tasks []json.RawMessage) error {
	if f.admin.json {
		for _, doc := range tasks {
			if _, err := fmt.Fprintln(out, web.TerminalJSON(string(doc))); err != nil {
				return err
			}
		}
		return nil
	}
	return table.print(tasks)
}

// row writes a row of a table.
func row(table io.Writer, cells ...string) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(table, "\t")
		}
		fmt.Fprint(table, shownCell(cell))
	}
	fmt.Fprintln(table)
}

// localTime is a time as it is shown on a terminal.
func localTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.DateTime)
}

// filterFlags say which tasks are meant.
type filterFlags struct {
	state, status        []string
	queue, host          string
	olderThan, newerThan string
}

// add adds the flags to a command. possible are the states in which its tasks can
// be; "" is any.
func (f *filterFlags) add(cmd *cobra.Command, admin *adminFlags, possible string) {
	states := "queued, running, delivering, done or dead"
	if possible != "" {
		states = possible
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.state, "state", nil, "only tasks in this state: "+states)
	flags.StringVar(&f.queue, "queue", "", "only tasks of this queue")
	flags.StringVar(&f.host, "host", "", "only tasks whose callback goes to this host, with or without its port")
	flags.StringSliceVar(&f.status, "status", nil, "only tasks that ended so: COMPLETE, FAILED or TIMEOUT")
	flags.StringVar(&f.olderThan, "older-than", "", "only tasks accepted longer ago, such as 90s, 2h or 7d")
	flags.StringVar(&f.newerThan, "newer-than", "", "only tasks accepted since then")
	names := strings.Split(strings.ReplaceAll(states, " or ", ", "), ", ")
	complete(cmd, "state", func() []string { return names })
	complete(cmd, "status", func() []string {
		return []string{string(task.Complete), string(task.Failed), string(task.TimedOut)}
	})
	complete(cmd, "queue", admin.queueNames)
}

// query is what the flags ask the API for. What they say wrong, the API says.
func (f *filterFlags) query() url.Values {
	query := make(url.Values)
	for _, state := range f.state {
		query.Add("state", state)
	}
	for _, status := range f.status {
		query.Add("status", strings.ToUpper(status))
	}
	for name, value := range map[string]string{
		"queue": f.queue, "host": f.host, "older_than": f.olderThan, "newer_than": f.newerThan,
	} {
		if value != "" {
			query.Set(name, value)
		}
	}
	return query
}

// failed says what a gateway or the way to it did not do. What a gateway refuses
// for what was asked is a mistake in the command line.
func failed(cmd *cobra.Command, err error) error {
	var answer *adminError
	if errors.As(err, &answer) && answer.status == http.StatusBadRequest {
		return usage(cmd, err)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", cmd.CommandPath(), web.TerminalText(err.Error()))
	return exit(cmd, exitFailed)
}
