package callback

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// What receivers and clients write into headers, paths and answers. Bodies and
// URLs have targets beside their tests.

func FuzzRetryAfter(f *testing.F) {
	for _, value := range []string{
		"", "0", "120", " 5 ", "-1", "1e9", "99999999999999999999999", "Fri, 31 Dec 2100 23:59:59 GMT",
		"Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Fri, 31 Dec 9999 23:59:59 GMT",
	} {
		f.Add(value)
	}
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, value string) {
		wait := parseRetryAfter(value, now)
		if wait < 0 {
			t.Errorf("%q is a wait of %v", value, wait)
		}
		if seconds, err := strconv.ParseUint(strings.TrimSpace(value), 10, 16); err == nil {
			if want := min(time.Duration(seconds)*time.Second, maxRetryAfter); wait != want {
				t.Errorf("%q is a wait of %v, not %v", value, wait, want)
			}
		}
	})
}

func FuzzPreferredWait(f *testing.F) {
	for _, value := range []string{
		"wait=5", "respond-async, wait=5", "WAIT = \"7\"; x=y", "wait", "wait=", "wait=-1", "wait=4294967296",
		"wait=4294967295", ",,wait=1,wait=2", "handling=lenient; wait=3",
	} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		wait, ok := preferredWait(http.Header{"Prefer": {value}})
		if wait < 0 || wait > maxWait || wait%time.Second != 0 || !ok && wait != 0 {
			t.Errorf("%q is a wait of %v, %v", value, wait, ok)
		}
		if ok && !strings.Contains(strings.ToLower(value), "wait") {
			t.Errorf("%q is a wait of %v", value, wait)
		}
	})
}

// canonicalID is how a task's ID is written.
var canonicalID = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

func FuzzLookup(f *testing.F) {
	const id = "0b1f9a3e-6a0c-4d0e-9d0e-0a1b2c3d4e5f"
	for _, path := range []string{
		"/q/" + id, "/q/" + id + "/", "/q/" + id + "/result", "/q/" + strings.ToUpper(id), "/q/{" + id + "}",
		"/q/urn:uuid:" + id, "/q/" + strings.ReplaceAll(id, "-", ""), id, "", "/", "/result", "/q/callback.*.>",
	} {
		for _, method := range []string{http.MethodGet, http.MethodDelete, http.MethodPost} {
			f.Add(method, path)
		}
	}
	f.Fuzz(func(t *testing.T, method, path string) {
		l, ok := lookupOf(method, path)
		// The ID becomes part of a subject, where * and > stand for other tasks.
		if ok != canonicalID.MatchString(l.id) {
			t.Errorf("%s %q asks for %+v, %v", method, path, l, ok)
		}
		if ok && !strings.Contains(strings.ToLower(path), l.id) {
			t.Errorf("%s %q asks for another task, %s", method, path, l.id)
		}
	})
}

func FuzzExcerpt(f *testing.F) {
	for _, body := range []string{"", "ok\r\n", "\x1b[2J\x00\x7f", "\xff\xfe", strings.Repeat("é", maxExcerpt), "a\u009bb"} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		text := excerpt(body)
		control := func(c rune) bool { return c != '\n' && c != '\t' && unicode.IsControl(c) }
		if !utf8.ValidString(text) || strings.ContainsFunc(text, control) || utf8.RuneCountInString(text) > maxExcerpt {
			t.Errorf("of %q is kept %q", body, text)
		}
	})
}

func FuzzSchedule(f *testing.F) {
	for _, cron := range []string{
		"* * * * *", "*/5 0-6 1,15 jan-MAR mon", "0 0 31 12 0", "60 * * * *", "* * 0 * *", "5-1 * * * *",
		"*/0 * * * *", "1/ * * * *", "? ? ? ? ?", "1,,2 * * * *", "* * * janx *", "+1 * * * *", "0x1 * * * *",
		"TZ=UTC 0 * * *", "TZ=0 0 0 0 0", "CRON_TZ= * * *", "@daily", "@every 10m", "@every 1ms", "@every", "@",
	} {
		f.Add(cron)
	}
	now := time.Date(2026, 11, 23, 16, 31, 36, 0, time.UTC)
	f.Fuzz(func(t *testing.T, cron string) {
		s := &Schedule{Cron: cron}
		if s.validate() != nil {
			return
		}
		times, err := s.times()
		if err != nil {
			t.Fatalf("%q is valid, and has no times: %v", cron, err)
		}
		if next := times.Next(now); !next.After(now) {
			t.Errorf("%q runs at %v after %v", cron, next, now)
		}
	})
}
