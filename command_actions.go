package callback

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// actionFlags are the flags of a command that does something to tasks.
type actionFlags struct {
	admin  adminFlags
	filter filterFlags
	all    bool
	// path is that of the API; done is what is said of a task afterwards.
	path, done string
	standard   []string // the states that --all means
}

const actionExits = `

Exit codes: 0 done, 1 of a task at least it could not be done, or the gateway did
not answer, 2 the command line is wrong.`

func newRedeliverCommand() *cobra.Command {
	f := &actionFlags{path: "redeliver", done: "is redelivered", standard: []string{"dead"}}
	return f.command("dead or done", `
Makes the callbacks of tasks due again, whose attempts begin anew: of dead ones,
and of done ones (--state done) whose result is still kept.`+actionExits,
		`  caddy callback redeliver 0190d2a4-8d4e-4a31-9c64-3a5c3f2f9d11
  caddy callback redeliver --all --host c.example`)
}

func newCancelCommand() *cobra.Command {
	f := &actionFlags{path: "cancel", done: "is canceled", standard: []string{"queued", "running"}}
	return f.command("queued or running", `
Ends tasks that wait or run: their verdict is FAILED, and their callbacks say
error=canceled.`+actionExits,
		`  caddy callback cancel 0190d2a4-8d4e-4a31-9c64-3a5c3f2f9d11
  caddy callback cancel --queue train --older-than 2h`)
}

func newPurgeCommand() *cobra.Command {
	f := &actionFlags{path: "purge", done: "is purged", standard: []string{"dead", "done"}}
	return f.command("dead or done", `
Removes tasks that have ended, with their results. They cannot be redelivered
afterwards.`+actionExits,
		`  caddy callback purge 0190d2a4-8d4e-4a31-9c64-3a5c3f2f9d11
  caddy callback purge --state dead --older-than 30d`)
}

func (f *actionFlags) command(possible, long, example string) *cobra.Command {
	shorts := map[string]string{
		"redeliver": "Delivers callbacks again", "cancel": "Ends tasks that wait or run", "purge": "Removes tasks that have ended",
	}
	cmd := &cobra.Command{
		Use:   f.path + " <task>… | --all | <filters>",
		Short: shorts[f.path], Long: long, Example: example,
		Args: cobra.ArbitraryArgs,
		RunE: f.run,
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return f.admin.taskIDs(f.standard...), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.SetFlagErrorFunc(usage)
	cmd.Flags().SortFlags = false
	f.filter.add(cmd, &f.admin, possible)
	cmd.Flags().BoolVar(&f.all, "all", false, "all tasks that match; without a filter, all of which it can be done")
	f.admin.add(cmd)
	return cmd
}

func (f *actionFlags) run(cmd *cobra.Command, ids []string) error {
	query := f.filter.query()
	switch {
	case len(ids) > 0 && (f.all || len(query) > 0):
		return usage(cmd, errors.New("it takes tasks, or filters, but not both"))
	case len(ids) == 0 && !f.all && len(query) == 0:
		return usage(cmd, errors.New("it takes the IDs of tasks, filters, or --all"))
	}
	if len(query) == 0 {
		query["state"] = f.standard
	}
	client, err := f.admin.client()
	if err != nil {
		return failed(cmd, err)
	}
	if len(ids) == 0 {
		return f.doAll(cmd, client, query)
	}
	code := 0
	for _, id := range ids {
		method, path := http.MethodPost, "tasks/"+taskSegment(id)+"/"+f.path
		if f.path == "purge" {
			method, path = http.MethodDelete, "tasks/"+taskSegment(id)
		}
		err := client.do(method, path, nil, nil)
		switch {
		case err != nil:
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", web.TerminalText(id), web.TerminalText(err.Error()))
			code = exitFailed
		case f.admin.json:
			_ = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"task_id": id}) // as below
		default:
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", web.TerminalText(id), f.done) // what is done is done, heard or not
		}
	}
	return exit(cmd, code)
}

// taskSegment is a task's ID as a segment of a path. What cannot be one would name
// another path, and becomes one that no task has.
func taskSegment(id string) string {
	if id == "" || strings.ContainsAny(id, "./\\?#%") {
		return "%20"
	}
	return url.PathEscape(id)
}

// actedOn is what became of all tasks that match.
type actedOn struct {
	Matched int    `json:"matched"`
	Changed int    `json:"changed"`
	Failed  int    `json:"failed"`
	Reason  string `json:"reason,omitempty"`
	Next    string `json:"next,omitempty"`
}

func (a *actedOn) isOurs() bool { return a.Matched >= 0 }

// doAll asks until all that match have been seen.
func (f *actionFlags) doAll(cmd *cobra.Command, client *adminClient, query url.Values) error {
	var total actedOn
	path := "tasks/" + f.path
	if f.path == "purge" {
		path = "tasks/delete"
	}
	for {
		part := actedOn{Matched: -1} // until the answer says how many
		if err := client.do(http.MethodPost, path, query, &part); err != nil {
			if total.Matched > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "before that, %d tasks of %d were changed\n", total.Changed, total.Matched)
			}
			return failed(cmd, err)
		}
		total.Matched += part.Matched
		total.Changed += part.Changed
		total.Failed += part.Failed
		if total.Reason == "" {
			total.Reason = part.Reason
		}
		if part.Next == "" {
			break
		}
		query.Set("after", part.Next)
	}
	if f.admin.json {
		_ = json.NewEncoder(cmd.OutOrStdout()).Encode(total) // what is done is done, heard or not
	} else {
		fmt.Fprintf(cmd.OutOrStdout(), "of %d tasks that match, %d were changed\n", total.Matched, total.Changed)
	}
	if total.Failed == 0 {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d were not; the first because: %s\n", total.Failed, web.TerminalText(total.Reason))
	return exit(cmd, exitFailed)
}
