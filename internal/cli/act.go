package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// action describes a command that changes tasks.
type action struct {
	name, short, long, example string
	done                       string   // what is printed after the ID of a changed task
	possible                   []string // the states in which a task can be changed
	standard                   []string // the states that --all selects
	// question is asked before the change. Without a question, nothing is asked.
	question string
}

const (
	actionExits = `

Exit codes: 0 done, 1 you declined, a task could not be changed, or the gateway
did not answer, 2 the command line is wrong.`
	actionAsks = `

On a terminal the command asks before it does this; elsewhere it needs --yes.`
)

// actions is sorted like the commands in the help.
var actions = []action{
	{
		name: "retry", short: "Makes the next attempts now",
		long: `
Makes the next attempt to deliver callbacks now, instead of when the retry schedule
says so.` + actionExits,
		example: `  caddy callback retry 0190d2a4-8d4e-7a31
  caddy callback retry --host c.example`,
		done: "is retried", possible: []string{"delivering"}, standard: []string{"delivering"},
	},
	{
		name: "stop", short: "Stops retrying callbacks",
		long: `
Makes no more attempts to deliver callbacks. Their tasks are dead and can be
redelivered.` + actionAsks + actionExits,
		example: `  caddy callback stop --host c.example --dry-run
  caddy callback stop --host c.example`,
		done: "is stopped", possible: []string{"delivering"}, standard: []string{"delivering"},
		question: "Stop retrying the callbacks of %s?",
	},
	{
		name: "redeliver", short: "Delivers callbacks again",
		long: `
Delivers the callbacks of tasks again, with the whole retry schedule: of dead ones,
and of done ones (--state done) whose result is still kept.` + actionExits,
		example: `  caddy callback redeliver 0190d2a4-8d4e-7a31
  caddy callback redeliver --all --host c.example`,
		done: "is redelivered", possible: []string{"dead", "done"}, standard: []string{"dead"},
	},
	{
		name: "cancel", short: "Cancels tasks that are queued or running",
		long: `
Ends tasks that are queued or running. Their verdict is FAILED, and their callbacks
say error=canceled.` + actionAsks + actionExits,
		example: `  caddy callback cancel 0190d2a4-8d4e-7a31
  caddy callback cancel --queue train --older-than 2h --yes`,
		done: "is canceled", possible: []string{"queued", "running"}, standard: []string{"queued", "running"},
		question: "Cancel %s?",
	},
	{
		name: "delete", short: "Deletes finished tasks",
		long: `
Deletes tasks that are done or dead, with their results. They cannot be redelivered
afterwards.` + actionAsks + actionExits,
		example: `  caddy callback delete 0190d2a4-8d4e-7a31
  caddy callback delete --state dead --older-than 30d --yes`,
		done: "is deleted", possible: []string{"dead", "done"}, standard: []string{"dead", "done"},
		question: "Delete %s? They cannot be redelivered afterwards.",
	},
}

// actionFlags are the flags of a command that changes tasks.
type actionFlags struct {
	*action
	gateway          gatewayFlags
	filter           filterFlags
	all, dryRun, yes bool
	url              string // a new callback URL, for redeliver
}

func (c *Caddy) newActionCommand(do *action) *cobra.Command {
	f := &actionFlags{action: do, gateway: gatewayFlags{caddy: c}}
	cmd := &cobra.Command{
		Use:   do.name + " <task>… | --all | <filters>",
		Short: do.short, Long: do.long, Example: do.example,
		Args: cobra.ArbitraryArgs,
		RunE: f.run,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return f.gateway.taskIDs(do.standard...), cobra.ShellCompDirectiveNoFileComp
		},
	}
	c.Flags(cmd)
	f.filter.add(cmd, &f.gateway, do.possible)
	flags := cmd.Flags()
	flags.BoolVar(&f.all, "all", false, "all tasks that match; without a filter, all that are "+alternatives(do.standard))
	flags.BoolVar(&f.dryRun, "dry-run", false, "only print which tasks match")
	if do.question != "" {
		flags.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	}
	if do.name == "redeliver" {
		flags.StringVar(&f.url, "url", "", "deliver the callbacks of the named tasks to this URL")
	}
	f.gateway.add(cmd)
	return cmd
}

func (f *actionFlags) run(cmd *cobra.Command, ids []string) error {
	c, query := f.gateway.caddy, f.filter.query()
	switch {
	case len(ids) > 0 && (f.all || len(query) > 0):
		return c.Misused(cmd, errors.New("give either task IDs, or filters and --all, but not both"))
	case len(ids) == 0 && !f.all && len(query) == 0:
		return c.Misused(cmd, errors.New("give task IDs, filters, or --all"))
	case len(ids) == 0 && f.url != "":
		return c.Misused(cmd, errors.New("--url: name the tasks by their IDs"))
	}
	if len(query) == 0 {
		query["state"] = f.standard
	}
	client, err := f.gateway.client()
	if err != nil {
		return c.Failed(cmd, err)
	}
	switch {
	case f.dryRun && len(ids) > 0:
		return f.dryRunOn(cmd, client, ids)
	case f.dryRun:
		return f.dryRunOnAll(cmd, client, query)
	}
	if ok, err := f.confirmed(cmd, client, ids, query); !ok {
		return err
	}
	if len(ids) > 0 {
		return f.onEach(cmd, client, ids)
	}
	return f.onAll(cmd, client, query)
}

// confirmed asks the question of the action, if it has one. If the result is false, the
// command ends with the returned error, which is already printed.
func (f *actionFlags) confirmed(cmd *cobra.Command, client *client, ids []string, query url.Values) (bool, error) {
	c := f.gateway.caddy
	if f.question == "" || f.yes {
		return true, nil
	}
	in := input(cmd)
	if in == nil {
		return false, c.Misused(cmd, errors.New("--yes is missing: it is required when standard input is not a terminal"))
	}
	n := len(ids)
	if n == 0 {
		var err error
		if n, err = f.matching(client, query); err != nil {
			return false, c.Failed(cmd, err)
		}
	}
	if !confirm(cmd, in, fmt.Sprintf(f.question, count(n, "task"))) {
		fmt.Fprintln(cmd.ErrOrStderr(), "nothing was changed")
		return false, c.End(cmd, ExitFailed)
	}
	return true, nil
}

// count returns a number with its noun.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// onEach changes the tasks with the given IDs.
func (f *actionFlags) onEach(cmd *cobra.Command, client *client, ids []string) error {
	var body any
	if f.url != "" {
		body = map[string]string{"url": f.url}
	}
	return f.each(cmd, client, ids, f.done, func(id string) error {
		if f.name == "delete" {
			return client.do(http.MethodDelete, taskPath(id), nil, nil, nil)
		}
		return client.do(http.MethodPost, taskPath(id, f.name), nil, body, nil)
	})
}

// dryRunOn prints which of the tasks with the given IDs could be changed.
func (f *actionFlags) dryRunOn(cmd *cobra.Command, client *client, ids []string) error {
	return f.each(cmd, client, ids, "matches; this is a dry run", func(id string) error {
		var doc shownTask
		if err := client.get(taskPath(id), nil, &doc); err != nil {
			return err
		}
		for _, state := range f.possible {
			if string(doc.document.State) == state {
				return nil
			}
		}
		return fmt.Errorf("the task is %s, not %s", doc.document.State, alternatives(f.possible))
	})
}

// each calls do with each task ID, which may be abbreviated, and prints the outcome.
func (f *actionFlags) each(cmd *cobra.Command, client *client, ids []string, done string, do func(id string) error) error {
	code := ExitDone
	for _, id := range ids {
		full := id
		err := client.withTask(id, func(id string) error {
			full = id
			return do(id)
		})
		switch {
		case err != nil:
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", web.TerminalText(id), web.TerminalText(err.Error()))
			code = ExitFailed
		case f.gateway.json:
			_ = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"task_id": full}) // the change is done, even if it cannot be printed
		default:
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", web.TerminalText(full), done)
		}
	}
	return f.gateway.caddy.End(cmd, code)
}

// bulkAnswer counts the tasks that matched and those that were changed.
type bulkAnswer struct {
	Matched int    `json:"matched"`
	Changed int    `json:"changed"`
	Failed  int    `json:"failed"`
	Reason  string `json:"reason,omitempty"` // of the first failure
	Next    string `json:"next,omitempty"`
}

func (a *bulkAnswer) isOurs() bool { return a.Matched >= 0 }

// changeAll calls the API until all matching tasks are changed, or, in a dry run, counted.
// With an error it returns the counts so far.
func (f *actionFlags) changeAll(client *client, query url.Values) (total bulkAnswer, err error) {
	query = maps.Clone(query)
	for {
		part := bulkAnswer{Matched: -1} // the answer overwrites it
		if err := client.do(http.MethodPost, "tasks/"+f.name, query, nil, &part); err != nil {
			return total, err
		}
		total.Matched += part.Matched
		total.Changed += part.Changed
		total.Failed += part.Failed
		total.Reason = firstNonEmpty(total.Reason, part.Reason)
		if part.Next == "" {
			return total, nil
		}
		query.Set(cursorParameter, part.Next)
	}
}

// matching counts the tasks that match. It changes nothing.
func (f *actionFlags) matching(client *client, query url.Values) (n int, err error) {
	query = maps.Clone(query)
	query.Set("dry_run", "true")
	total, err := f.changeAll(client, query)
	return total.Matched, err
}

// dryRunOnAll prints how many tasks match.
func (f *actionFlags) dryRunOnAll(cmd *cobra.Command, client *client, query url.Values) error {
	n, err := f.matching(client, query)
	switch {
	case err != nil:
		return f.gateway.caddy.Failed(cmd, err)
	case f.gateway.json:
		err = json.NewEncoder(cmd.OutOrStdout()).Encode(bulkAnswer{Matched: n})
	default:
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s would be changed; this is a dry run\n", count(n, "task"))
	}
	if err != nil {
		return f.gateway.caddy.Failed(cmd, err)
	}
	return nil
}

// onAll changes all tasks that match.
func (f *actionFlags) onAll(cmd *cobra.Command, client *client, query url.Values) error {
	total, err := f.changeAll(client, query)
	if err != nil {
		if total.Matched > 0 {
			fmt.Fprintf(cmd.ErrOrStderr(), "%d of %s were changed before the error\n", total.Changed, count(total.Matched, "task"))
		}
		return f.gateway.caddy.Failed(cmd, err)
	}
	if out := cmd.OutOrStdout(); f.gateway.json {
		_ = json.NewEncoder(out).Encode(total) // the change is done, even if it cannot be printed
	} else {
		fmt.Fprintf(out, "changed %d of %d matching tasks\n", total.Changed, total.Matched)
	}
	if total.Failed == 0 {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d were not changed; the first error: %s\n",
		total.Failed, web.TerminalText(total.Reason))
	return f.gateway.caddy.End(cmd, ExitFailed)
}
