package header_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/header"
)

func TestPreferredWait(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		lines []string
		wait  time.Duration
		named bool
	}{
		{nil, 0, false},
		{[]string{""}, 0, false},
		{[]string{"respond-async"}, 0, false},
		{[]string{"wait"}, 0, false},
		{[]string{"wait="}, 0, false},
		{[]string{"wait=soon"}, 0, false},
		{[]string{"wait=-1"}, 0, false},
		{[]string{"wait=1.5"}, 0, false},
		{[]string{"waiting=5"}, 0, false},
		{[]string{"wait=0"}, 0, true},
		{[]string{"wait=10"}, 10 * time.Second, true},
		{[]string{" WAIT = 10 "}, 10 * time.Second, true},
		{[]string{`wait="10"`}, 10 * time.Second, true},
		{[]string{"wait=10; a=b"}, 10 * time.Second, true},
		{[]string{"respond-async, wait=5"}, 5 * time.Second, true},
		{[]string{"wait=5,respond-async"}, 5 * time.Second, true},
		{[]string{"respond-async", "wait=5"}, 5 * time.Second, true},
		{[]string{"wait=5, wait=7"}, 5 * time.Second, true}, // RFC 7240, section 2: the first counts
		{[]string{"wait=3600"}, time.Hour, true},
		{[]string{"wait=3601"}, time.Hour, true},
		{[]string{"wait=4294967295"}, time.Hour, true},
	} {
		t.Run(strings.Join(tt.lines, "|"), func(t *testing.T) {
			t.Parallel()
			wait, named := header.PreferredWait(http.Header{"Prefer": tt.lines})
			if wait != tt.wait || named != tt.named {
				t.Errorf("it is %v (%v), not %v (%v)", wait, named, tt.wait, tt.named)
			}
		})
	}
}

func TestPreferredWaitIgnoresQuotedText(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]time.Duration{
		`wait=2`:                      2 * time.Second,
		`a="x, wait=1"`:               0,
		`a="\", wait=1", wait=2`:      2 * time.Second,
		`respond-async, WAIT = "3";x`: 3 * time.Second,
	} {
		if got, _ := header.PreferredWait(http.Header{"Prefer": {line}}); got != want {
			t.Errorf("%s: %v, not %v", line, got, want)
		}
	}
}

func FuzzPreferredWait(f *testing.F) {
	for _, value := range []string{
		"wait=5", "respond-async, wait=5", "WAIT = \"7\"; x=y", "wait", "wait=", "wait=-1", "wait=4294967296",
		"wait=4294967295", ",,wait=1,wait=2", "handling=lenient; wait=3",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		wait, ok := header.PreferredWait(http.Header{"Prefer": {value}})
		if wait < 0 || wait > header.MaxWait || wait%time.Second != 0 || !ok && wait != 0 {
			t.Errorf("%q is a wait of %v, %v", value, wait, ok)
		}
		if ok && !strings.Contains(strings.ToLower(value), "wait") {
			t.Errorf("%q is a wait of %v", value, wait)
		}
	})
}
