package callback

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

func newShowCommand() *cobra.Command {
	f := new(adminFlags)
	cmd := &cobra.Command{
		Use:   "show <task>",
		Short: "Shows one task and what happened to it",
		Long: `
Shows a task of a running gateway: how it stands and what happened to it, each
attempt with the beginning of the receiver's answer. With --json, as the API has
it.

Exit codes: 0 shown, 1 there is no such task or no gateway, 2 the command line is
wrong.`,
		Example: `  caddy callback show 0190d2a4-8d4e-4a31-9c64-3a5c3f2f9d11`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage(cmd, fmt.Errorf("it takes the ID of one task, not %d", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return f.show(cmd, args[0]) },
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return f.taskIDs(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.SetFlagErrorFunc(usage)
	cmd.Flags().SortFlags = false
	f.add(cmd)
	return cmd
}

// shownTask is a task as the API has it.
type shownTask struct {
	text     []byte
	document taskDocument
}

func (t *shownTask) UnmarshalJSON(text []byte) error {
	t.text = bytes.Clone(text)
	return json.Unmarshal(text, &t.document)
}

func (t *shownTask) isOurs() bool { return t.document.ID != "" }

// taskDocument is what is printed of it.
type taskDocument struct {
	task.Task
	Timeline []struct {
		At             time.Time `json:"at"`
		Event          string    `json:"event"`
		Status         string    `json:"status"`
		UpstreamStatus int       `json:"upstream_status"`
		Attempt        int       `json:"attempt"`
		StatusCode     int       `json:"status_code"`
		DurationMS     int64     `json:"duration_ms"`
		Response       string    `json:"response"`
		Start          int       `json:"start"`
		Error          string    `json:"error"`
	} `json:"timeline"`
}

func (f *adminFlags) show(cmd *cobra.Command, id string) error {
	client, err := f.client()
	if err != nil {
		return failed(cmd, err)
	}
	doc := new(shownTask)
	if err := client.do(http.MethodGet, "tasks/"+taskSegment(id), nil, doc); err != nil {
		return failed(cmd, err)
	}
	out := cmd.OutOrStdout()
	if f.json {
		_, err = fmt.Fprintln(out, web.TerminalJSON(string(doc.text)))
	} else {
		err = doc.document.print(out)
	}
	if err != nil {
		return failed(cmd, err)
	}
	return nil
}

func (t *taskDocument) print(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, field := range [][2]string{
		{"task", t.ID}, {"queue", t.Queue}, {"state", string(t.State)}, {"status", string(t.Status)},
		{"upstream status", number(t.UpstreamStatus)}, {"error", t.Error}, {"callback host", t.CallbackHost},
	} {
		if field[1] != "" {
			row(table, field[0], field[1])
		}
	}
	fmt.Fprintln(table)
	for _, h := range t.Timeline {
		name := h.Event
		switch {
		case h.Attempt > 0:
			name += " " + strconv.Itoa(h.Attempt)
		case h.Start > 1:
			name += " (start " + strconv.Itoa(h.Start) + ")"
		}
		what := ""
		for _, part := range []string{h.Status, number(h.UpstreamStatus), number(h.StatusCode), h.Error} {
			if part != "" && what != "" {
				what += " "
			}
			what += part
		}
		if h.Attempt > 0 {
			what += fmt.Sprintf(" in %v", time.Duration(h.DurationMS)*time.Millisecond)
		}
		row(table, localTime(h.At), name, what)
		if h.Response != "" {
			fmt.Fprintf(table, "\t\t%s\n", web.TerminalText(h.Response))
		}
	}
	return table.Flush()
}

// number is a number that may be missing.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
