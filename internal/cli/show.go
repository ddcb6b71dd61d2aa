package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// oneTask is the Args function of a command with one task ID.
func (c *Caddy) oneTask(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return c.Misused(cmd, fmt.Errorf("give the ID of one task or its first characters, not %d arguments", len(args)))
	}
	return nil
}

func (c *Caddy) newShowCommand() *cobra.Command {
	f := &gatewayFlags{caddy: c}
	cmd := &cobra.Command{
		Use:   "show <task>",
		Short: "Shows one task with all its attempts",
		Long: `
Shows a task of a running gateway: its state, and what happened to it, each attempt
with the beginning of the receiver's answer. With --json, it prints the document
of the API.

Exit codes: 0 shown, 1 there is no such task or no gateway, 2 the command line is
wrong.`,
		Example: `  caddy callback show 0190d2a4-8d4e-7a31`,
		Args:    c.oneTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.show(cmd, args[0]); err != nil {
				return c.Failed(cmd, err)
			}
			return nil
		},
		ValidArgsFunction: completeOne(func() []string { return f.taskIDs() }),
	}
	c.Flags(cmd)
	f.add(cmd)
	return cmd
}

// shownTask is the API's document of a task, decoded and as text.
type shownTask struct {
	text     []byte
	document taskDocument
}

func (t *shownTask) UnmarshalJSON(text []byte) error {
	t.text = bytes.Clone(text)
	return json.Unmarshal(text, &t.document)
}

func (t *shownTask) isOurs() bool { return t.document.ID != "" }

// taskDocument has the printed fields of a task.
type taskDocument struct {
	listedTask
	RequestSize int64   `json:"request_size"`
	Route       string  `json:"route"`
	Timeline    []event `json:"timeline"`
}

// event is a past or expected event of a task.
type event struct {
	At             time.Time    `json:"at"`
	Event          string       `json:"event"`
	Status         task.Verdict `json:"status"`
	UpstreamStatus int          `json:"upstream_status"`
	Attempt        int          `json:"attempt"`
	StatusCode     int          `json:"status_code"`
	DurationMS     int64        `json:"duration_ms"`
	Response       string       `json:"response"`
	Start          int          `json:"start"`
	Error          string       `json:"error"`
}

func (f *gatewayFlags) show(cmd *cobra.Command, id string) error {
	client, err := f.client()
	if err != nil {
		return err
	}
	doc := new(shownTask)
	get := func(id string) error { return client.get(taskPath(id), nil, doc) }
	if err := client.withTask(id, get); err != nil {
		return err
	}
	s := newScreen(cmd)
	if f.json {
		_, err = fmt.Fprintln(s.out, web.TerminalJSON(string(doc.text)))
		return err
	}
	_, err = io.WriteString(s.out, doc.document.text(s))
	return err
}

// text returns the task as text for a screen.
func (t *taskDocument) text(s *screen) string {
	var b strings.Builder
	for _, field := range []struct {
		name string
		cell
	}{
		{"task", cell{text: t.ID}},
		{"request", cell{text: strings.TrimSpace(t.Method + " " + t.Path)}},
		{"request size", cell{text: number(int(t.RequestSize))}},
		{"route", cell{text: t.Route}},
		{"queue", cell{text: t.Queue}},
		{"state", cell{string(t.State), stateColor(t.State)}},
		{"status", cell{string(t.Status), statusColor(t.Status)}},
		{"upstream status", cell{text: number(t.UpstreamStatus)}},
		{"error", cell{text: t.Error}},
		{"callback host", cell{text: t.CallbackHost}},
	} {
		if field.text != "" {
			s.field(&b, field.name, field.cell)
		}
	}
	b.WriteByte('\n')
	for i := range t.Timeline {
		t.Timeline[i].write(&b, s)
	}
	return b.String()
}

// fieldWidth is the width of the longest field name.
const fieldWidth = len("upstream status")

// field writes a field. Text that is too long for a line continues on the next one.
func (s *screen) field(b *strings.Builder, name string, c cell) {
	indent := fieldWidth + len(gap)
	width := 0
	if s.width > 0 {
		width = max(s.width-indent, minWidth)
	}
	for i, line := range wrapped(web.TerminalText(c.text), width) {
		if i > 0 {
			name = ""
		}
		fmt.Fprintf(b, "%-*s%s%s\n", fieldWidth, name, gap, s.colored(c.color, line))
	}
}

// write writes an event: its time, its text, and the details below.
func (e *event) write(b *strings.Builder, s *screen) {
	name, c := e.Event, color(0)
	switch {
	case e.Attempt > 0:
		name += " " + strconv.Itoa(e.Attempt)
		c = red
		if e.StatusCode >= 200 && e.StatusCode < 300 {
			c = green
		}
	case e.Start > 1:
		name += " (start " + strconv.Itoa(e.Start) + ")"
	case e.Event == "dead":
		c = red
	case e.Event == "delivered":
		c = green
	default:
		c = statusColor(e.Status)
	}
	words := []string{string(e.Status), number(e.UpstreamStatus), number(e.StatusCode), e.Error}
	if e.Attempt > 0 {
		words = append(words, "in "+(time.Duration(e.DurationMS)*time.Millisecond).String())
	}
	// Leave out empty details.
	what := strings.Join(strings.Fields(strings.Join(words, " ")), " ")
	when := at(e.At)
	lines := wrapped(web.TerminalText(strings.TrimSpace(name+gap+what)), max(0, s.width-len(when)-len(gap)))
	for i, line := range lines {
		if i > 0 {
			when = ""
		}
		fmt.Fprintf(b, "%-*s%s%s\n", len(at(e.At)), when, gap, s.colored(c, line))
	}
	if e.Response != "" {
		const indent = "    "
		for _, line := range wrapped(web.TerminalText(e.Response), max(0, s.width-len(indent))) {
			fmt.Fprintf(b, "%s%s\n", indent, line)
		}
	}
}

// number formats a number, zero as "".
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// resultFlags are the flags of `caddy callback result`.
type resultFlags struct {
	gateway  gatewayFlags
	callback bool
}

func (c *Caddy) newResultCommand() *cobra.Command {
	f := &resultFlags{gateway: gatewayFlags{caddy: c}}
	cmd := &cobra.Command{
		Use:   "result <task> [--callback]",
		Short: "Prints the result of a task",
		Long: `
Prints the stored response of the endpoint, or with --callback the body of
the callback. A terminal shows text with control characters escaped; elsewhere the
bytes are printed unchanged.

Exit codes: 0 printed, 1 there is no such task, its result is not kept, or no
gateway answers, 2 the command line is wrong.`,
		Example: `  caddy callback result 0190d2a4-8d4e-7a31 > result.json
  caddy callback result 0190d2a4-8d4e-7a31 --callback`,
		Args: c.oneTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.print(cmd, args[0]); err != nil {
				return c.Failed(cmd, err)
			}
			return nil
		},
		ValidArgsFunction: completeOne(func() []string { return f.gateway.taskIDs("done", "dead", "delivering") }),
	}
	c.Flags(cmd)
	cmd.Flags().BoolVar(&f.callback, "callback", false, "print the body of the callback instead")
	f.gateway.addAddress(cmd)
	return cmd
}

func (f *resultFlags) print(cmd *cobra.Command, id string) error {
	client, err := f.gateway.client()
	if err != nil {
		return err
	}
	part, query := "result", url.Values(nil)
	if f.callback {
		part, query = "callback", url.Values{"raw": {"true"}}
	}
	return client.withTask(id, func(id string) error {
		resp, err := client.send(http.MethodGet, taskPath(id, part), query, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		s := newScreen(cmd)
		if !s.terminal {
			_, err = io.Copy(s.out, resp.Body)
			return err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return fmt.Errorf("reading the %s: %w", part, err)
		}
		if !utf8.Valid(body) {
			return fmt.Errorf("the %s is not text; redirect it to a file", part)
		}
		for line := range strings.Lines(string(body)) {
			if _, err := fmt.Fprintln(s.out, web.TerminalText(strings.TrimRight(line, "\r\n"))); err != nil {
				return err
			}
		}
		return nil
	})
}
