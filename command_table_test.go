package callback

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestColumnsOfTasksStandBelowOneAnotherOnEveryPage(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	table := newTaskTable(&out)
	for _, page := range [][]json.RawMessage{
		{[]byte(`{"task_id":"0190d2a4-8d4e-4a31-9c64-3a5c3f2f9d11","state":"dead","created_at":"2026-01-02T03:04:05Z","callback_host":"c.example:443"}`)},
		nil,
		{[]byte(`{"task_id":"0190d2a4-8d4e-4a31-9c64-3a5c3f2f9d12","state":"delivering","status":"COMPLETE","queue":"träge","created_at":"2026-01-02T03:04:05Z"}`)},
		{[]byte(`{"task_id":"0190d2a4-8d4e-4a31-9c64-3a5c3f2f9d13","state":"queued","queue":"slow","created_at":"2026-01-02T03:04:05Z","callback_host":"\u001b[31m"}`)},
	} {
		if err := table.print(page); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 4 {
		t.Fatalf("it is %q", out.String())
	}
	for _, name := range []string{"STATE", "STATUS", "ACCEPTED", "ATTEMPTS", "QUEUE", "HOST", "ERROR"} {
		column := strings.Index(lines[0], name)
		for _, line := range lines[1:] {
			if at := []rune(line); utf8.RuneCountInString(line) <= column || at[column-1] != ' ' || at[column] == ' ' {
				t.Errorf("%s does not stand below its name:\n%s", name, out.String())
				break
			}
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("a cell moves the terminal: %q", out.String())
	}
}
