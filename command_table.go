package callback

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

// taskTable prints tasks in columns. They come in pages, of which a filter makes
// many short ones, and the columns must stand below one another all the same:
// each is as wide as the widest cell so far, and at first as its widest usual
// one.
type taskTable struct {
	out    io.Writer
	widths []int
}

// taskColumns are the columns, with what is usual in those that hold only that.
var taskColumns = []struct{ name, usual string }{
	{"TASK", "0190d2a4-8d4e-4a31-9c64-3a5c3f2f9d11"},
	{"STATE", string(task.Delivering)},
	{"STATUS", string(task.Complete)},
	{"ACCEPTED", "2006-01-02 15:04:05"},
	{"ATTEMPTS", ""},
	{"QUEUE", ""},
	{"HOST", ""},
	{"ERROR", ""},
}

func newTaskTable(out io.Writer) *taskTable { return &taskTable{out: out} }

// print prints a page, and before the first the columns' names.
func (t *taskTable) print(tasks []json.RawMessage) error {
	if len(tasks) == 0 {
		return nil
	}
	var rows [][]string
	if t.widths == nil {
		t.widths = make([]int, len(taskColumns))
		names := make([]string, len(taskColumns))
		for i, column := range taskColumns {
			t.widths[i], names[i] = len(column.usual), column.name
		}
		rows = append(rows, names)
	}
	for _, text := range tasks {
		var doc task.Task
		if err := json.Unmarshal(text, &doc); err != nil {
			return fmt.Errorf("reading the gateway's answer: %w", err)
		}
		rows = append(rows, []string{
			doc.ID, string(doc.State), string(doc.Status), localTime(doc.CreatedAt),
			strconv.Itoa(len(doc.Attempts)), doc.Queue, doc.CallbackHost, doc.Error,
		})
	}
	return t.write(rows)
}

func (t *taskTable) write(rows [][]string) error {
	for _, cells := range rows {
		for i, cell := range cells {
			cells[i] = shownCell(cell)
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(cells[i]))
		}
	}
	var b strings.Builder
	for _, cells := range rows {
		last := len(cells) - 1
		for i, cell := range cells[:last] {
			fmt.Fprintf(&b, "%-*s  ", t.widths[i], cell)
		}
		fmt.Fprintln(&b, cells[last])
	}
	_, err := io.WriteString(t.out, b.String())
	return err
}

// shownCell is a cell as it is shown. Empty ones have a dash, so that columns can
// be counted.
func shownCell(s string) string {
	if s == "" {
		return "-"
	}
	return web.TerminalText(s)
}
