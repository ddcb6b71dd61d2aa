package callback

import (
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Fuzz targets for headers, paths and responses. The targets for bodies and URLs are in
// the packages that parse them.

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

// canonicalID matches a task's ID.
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
		// The ID becomes part of a NATS subject, where * and > would match other tasks.
		if ok != canonicalID.MatchString(l.id) {
			t.Errorf("%s %q looks up %+v, %v", method, path, l, ok)
		}
		if ok && !strings.Contains(strings.ToLower(path), l.id) {
			t.Errorf("%s %q looks up another task, %s", method, path, l.id)
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
			t.Fatalf("%q is valid but has no run times: %v", cron, err)
		}
		if next := times.Next(now); !next.After(now) {
			t.Errorf("%q runs at %v after %v", cron, next, now)
		}
	})
}
