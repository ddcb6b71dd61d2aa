package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// pages are pages of the API's list. A filter can make pages short or empty.
var pages = [][]string{
	{`{"task_id":"0190d2a4-8d4e-7a31-9c64-3a5c3f2f9d11","state":"dead","status":"COMPLETE","created_at":"2026-01-02T03:04:05Z",
		"callback_host":"c.example:443","method":"POST","path":"/generate","attempts":[{"status_code":503}]}`},
	nil,
	{`{"task_id":"0190d2a4-8d4e-7a32-9c64-3a5c3f2f9d12","state":"delivering","status":"COMPLETE","queue":"träge","created_at":"2026-01-02T03:04:05Z",
		"last_error":"dial tcp: lookup a-very-long-name.c.example: no such host","next_attempt_at":"2026-01-02T04:04:05Z"}`},
	{`{"task_id":"0190d2a4-8d4e-7a33-9c64-3a5c3f2f9d13","state":"queued","queue":"slow","created_at":"2026-01-02T03:04:05Z","callback_host":"\u001b[31m"}`},
}

// printedTasks prints the pages and returns the lines.
func printedTasks(t *testing.T, s *screen, pages ...[]string) []string {
	t.Helper()
	var out strings.Builder
	s.out, s.now = &out, time.Date(2026, 1, 2, 3, 34, 5, 0, time.UTC)
	table := newTaskTable(s)
	for _, texts := range pages {
		var page taskPage
		for _, text := range texts {
			page.Tasks = append(page.Tasks, json.RawMessage(text))
		}
		tasks, err := page.decode()
		if err != nil {
			t.Fatal(err)
		}
		if err := table.print(tasks); err != nil {
			t.Fatal(err)
		}
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

func TestColumnsAlignOnEveryPage(t *testing.T) {
	t.Parallel()
	lines := printedTasks(t, new(screen), pages...)
	if len(lines) != 4 {
		t.Fatalf("printed %q", lines)
	}
	for _, name := range []string{"STATE", "STATUS", "AGE", "HOST"} {
		column := strings.Index(lines[0], name)
		for _, line := range lines[1:] {
			if at := []rune(line); len(at) <= column || at[column-1] != ' ' || at[column] == ' ' {
				t.Errorf("%s is not aligned:\n%s", name, strings.Join(lines, "\n"))
				break
			}
		}
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		"0190d2a4-8d4e-7a31-9c64-3a5c3f2f9d11", "503 Service Unavailable", "POST /generate", "30m",
		"no such host; again in 30m", `\x1b[31m`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing:\n%s", want, all)
		}
	}
	if strings.Contains(all, "\x1b") {
		t.Errorf("a cell has terminal control characters: %q", all)
	}
}

func TestTableFitsScreen(t *testing.T) {
	t.Parallel()
	var one []string
	for _, page := range pages {
		one = append(one, page...)
	}
	for _, width := range []int{60, 80, 100, 132, 200} {
		lines := printedTasks(t, &screen{width: width}, one)
		for _, line := range lines {
			// IDs are not cut, however narrow the screen, because they identify tasks.
			if n := utf8.RuneCountInString(line); n > max(width, 70) {
				t.Errorf("on a screen of %d characters, a line has %d: %s", width, n, line)
			}
		}
		for i, id := range []string{"0190d2a4-8d4e-7a31", "0190d2a4-8d4e-7a32", "0190d2a4-8d4e-7a33"} {
			if !strings.HasPrefix(lines[i+1], id+"  ") {
				t.Errorf("on a screen of %d characters, line %d is %q", width, i+1, lines[i+1])
			}
		}
	}
	wide := printedTasks(t, &screen{width: 80}, []string{`{"task_id":"a","state":"queued","created_at":"2026-01-02T03:04:05Z"}`})
	if strings.Contains(wide[0], "QUEUE") {
		t.Errorf("an empty column is shown: %s", wide[0])
	}
}

func TestColorsNeedColorScreen(t *testing.T) {
	t.Parallel()
	for _, colored := range []bool{false, true} {
		lines := printedTasks(t, &screen{width: 80, color: colored}, pages[0])
		if got := strings.Contains(lines[1], "\x1b[31mdead\x1b[0m"); got != colored {
			t.Errorf("color %v: %q", colored, lines[1])
		}
	}
}

func TestWrapTextAtSpaces(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text  string
		width int
		want  string
	}{
		{"one two three", 8, "one two|three"},
		{"onetwothree", 4, "onet|woth|ree"},
		{"one two", 0, "one two"},
		{"äöü äöü", 4, "äöü|äöü"},
		{"", 4, ""},
	} {
		if got := strings.Join(wrapped(test.text, test.width), "|"); got != test.want {
			t.Errorf("%q wrapped at %d is %q, want %q", test.text, test.width, got, test.want)
		}
	}
}

func TestShowTaskFitsScreen(t *testing.T) {
	t.Parallel()
	var doc taskDocument
	if err := json.Unmarshal([]byte(`{"task_id":"0190d2a4-8d4e-7a31-9c64-3a5c3f2f9d11","state":"dead","status":"COMPLETE",
		"error":"the endpoint gave no answer for such a long time that the text about it does not fit into a line",
		"timeline":[{"at":"2026-01-02T03:04:05.678Z","event":"attempt","attempt":2,"status_code":503,"duration_ms":12,
		"response":"try again later, or in some hours, or tomorrow, and then again the day after that, please\u001b[2J"}]}`), &doc); err != nil {
		t.Fatal(err)
	}
	text := doc.text(&screen{width: 60})
	for line := range strings.Lines(text) {
		if utf8.RuneCountInString(strings.TrimSuffix(line, "\n")) > 60 {
			t.Errorf("a line is longer than 60 characters: %s", line)
		}
	}
	for _, want := range []string{"attempt 2  503 in 12ms", ".678", `\x1b[2J`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing:\n%s", want, text)
		}
	}
}
