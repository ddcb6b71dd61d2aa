package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// tasksFlags are the flags of `caddy callback tasks`.
type tasksFlags struct {
	gateway gatewayFlags
	filter  filterFlags
	watch   watchFlag
	limit   int
	all     bool
}

// allStates are the states of a task.
var allStates = []string{
	string(task.Queued), string(task.Running), string(task.Delivering), string(task.Done), string(task.Dead),
}

func (c *Caddy) newTasksCommand() *cobra.Command {
	f := &tasksFlags{gateway: gatewayFlags{caddy: c}}
	cmd := &cobra.Command{
		Use:   "tasks [--state <state>] [--queue <name>] [--host <host>]",
		Short: "Lists tasks and why they are not done",
		Long: `
Lists the tasks of a running gateway, newest first. A task must match all filters.
With --json, each task is one line of JSON.

A terminal shows abbreviated IDs, which other commands accept. In files and pipes
nothing is cut.

Exit codes: 0 listed, 1 the gateway did not answer, 2 the command line is wrong.`,
		Example: `  caddy callback tasks --state dead --host c.example --newer-than 1d
  caddy callback tasks --state delivering --watch
  caddy callback tasks --queue train --all --json | jq -r .task_id`,
		Args: c.NoArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	c.Flags(cmd)
	f.filter.add(cmd, &f.gateway, allStates)
	cmd.Flags().IntVar(&f.limit, "limit", defaultListed, "the maximum number of tasks")
	cmd.Flags().BoolVar(&f.all, "all", false, "list all tasks")
	f.watch.add(cmd)
	f.gateway.add(cmd)
	return cmd
}

const (
	// defaultListed is how many tasks are listed by default.
	defaultListed = 50
	// pageSize is how many tasks the API returns at once.
	pageSize = 1000
	// cursorParameter is the API's parameter for the next page of a list.
	cursorParameter = "after"
)

// taskPage is a page of the API's list.
type taskPage struct {
	Tasks []json.RawMessage `json:"tasks"`
	Next  string            `json:"next"`
}

func (p *taskPage) isOurs() bool { return p.Tasks != nil }

// decode returns the tasks of the page.
func (p *taskPage) decode() ([]listedTask, error) {
	tasks := make([]listedTask, len(p.Tasks))
	for i, text := range p.Tasks {
		if err := json.Unmarshal(text, &tasks[i]); err != nil {
			return nil, fmt.Errorf("reading the gateway's response: %w", err)
		}
	}
	return tasks, nil
}

// listedTask is a task in the list of the API.
type listedTask struct {
	task.Task
	Method         string `json:"method"`
	Path           string `json:"path"`
	Reason         string `json:"reason"`
	LastStatusCode int    `json:"last_status_code"`
	LastError      string `json:"last_error"`
}

// why returns the reason that a task is not done, "" if it is done.
func (t *listedTask) why() string {
	if t.Reason != "" || t.State != task.Delivering && t.State != task.Dead {
		return firstNonEmpty(t.Reason, t.Error)
	}
	status, text := t.LastStatusCode, t.LastError
	if n := len(t.Attempts); n > 0 {
		status, text = t.Attempts[n-1].StatusCode, t.Attempts[n-1].Error
	}
	if text == "" && status > 0 {
		text = statusText(status)
	}
	return firstNonEmpty(text, t.Error)
}

func firstNonEmpty(texts ...string) string {
	for _, text := range texts {
		if text != "" {
			return text
		}
	}
	return ""
}

// statusText returns a status code with its text.
func statusText(code int) string {
	if text := http.StatusText(code); text != "" {
		return strconv.Itoa(code) + " " + text
	}
	return strconv.Itoa(code)
}

func (f *tasksFlags) run(cmd *cobra.Command) error {
	if f.limit < 1 {
		return f.gateway.caddy.Misused(cmd, fmt.Errorf("--limit: %d is not a positive number", f.limit))
	}
	client, err := f.gateway.client()
	if err == nil {
		err = f.watch.run(cmd, func(s *screen) error { return f.list(cmd, client, s) })
	}
	if err != nil {
		return f.gateway.caddy.Failed(cmd, err)
	}
	return nil
}

// list prints the tasks that match.
func (f *tasksFlags) list(cmd *cobra.Command, client *client, s *screen) error {
	query, listed := f.filter.query(), 0
	table := newTaskTable(s)
	for f.all || listed < f.limit {
		query.Set("limit", strconv.Itoa(pageSize))
		if !f.all {
			query.Set("limit", strconv.Itoa(min(pageSize, f.limit-listed)))
		}
		var page taskPage
		if err := client.get("tasks", query, &page); err != nil {
			return err
		}
		if err := f.print(table, &page); err != nil {
			return err
		}
		listed += len(page.Tasks)
		if page.Next == "" {
			break
		}
		query.Set(cursorParameter, page.Next)
		if !f.all && listed >= f.limit && !f.gateway.json {
			fmt.Fprintln(cmd.ErrOrStderr(), "there are more; list them with --limit or --all")
		}
	}
	if listed == 0 && !f.gateway.json {
		fmt.Fprintln(cmd.ErrOrStderr(), "no tasks match")
	}
	return nil
}

// print prints a page.
func (f *tasksFlags) print(table *taskTable, page *taskPage) error {
	if f.gateway.json {
		for _, text := range page.Tasks {
			if _, err := fmt.Fprintln(table.screen.out, web.TerminalJSON(string(text))); err != nil {
				return err
			}
		}
		return nil
	}
	tasks, err := page.decode()
	if err != nil {
		return err
	}
	return table.print(tasks)
}

// shortID is the length of an abbreviated ID: of a UUID version 7 it has the time in
// milliseconds and 12 random bits.
const shortID = len("0190d2a4-8d4e-7a31")

// taskTable is a table of tasks.
type taskTable struct{ table }

func newTaskTable(s *screen) *taskTable {
	return &taskTable{table{screen: s, columns: []column{
		{name: "TASK"},
		{name: "STATE", usual: string(task.Delivering)},
		{name: "STATUS", usual: string(task.Complete)},
		{name: "AGE", usual: "59m"},
		{name: "HOST", elastic: true},
		{name: "WHY", elastic: true},
		{name: "QUEUE", elastic: true, optional: true},
		{name: "REQUEST", elastic: true, optional: true},
		{name: "ATTEMPTS", optional: true},
	}}}
}

// print prints a page of tasks.
func (t *taskTable) print(tasks []listedTask) error {
	rows := make([][]cell, len(tasks))
	for i := range tasks {
		doc := &tasks[i]
		id, why := doc.ID, doc.why()
		if t.screen.width > 0 {
			id = id[:min(len(id), shortID)]
		}
		if doc.State == task.Delivering && doc.NextAttemptAt.After(t.screen.now) {
			why += "; again in " + span(doc.NextAttemptAt.Sub(t.screen.now))
		}
		request := doc.Path
		if doc.Method != "" {
			request = doc.Method + " " + request
		}
		rows[i] = []cell{
			{text: id},
			{text: string(doc.State), color: stateColor(doc.State)},
			{text: string(doc.Status), color: statusColor(doc.Status)},
			{text: t.screen.age(doc.CreatedAt)},
			{text: doc.CallbackHost},
			{text: why},
			{text: doc.Queue},
			{text: request},
			{text: number(len(doc.Attempts))},
		}
	}
	return t.table.print(rows)
}

func stateColor(s task.State) color {
	switch s {
	case task.Dead:
		return red
	case task.Delivering:
		return yellow
	case task.Running:
		return blue
	case task.Done:
		return green
	default:
		return 0
	}
}

func statusColor(v task.Verdict) color {
	switch v {
	case task.Complete:
		return green
	case task.Failed:
		return red
	case task.TimedOut:
		return yellow
	default:
		return 0
	}
}
