//go:build !race

// With the race detector, a day of fake time takes minutes.

package faults

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// schedule is the documented retry schedule: the waits between the twelve attempts.
var schedule = []time.Duration{
	5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute, 2 * time.Hour,
	5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

const (
	// coarse is the resolution of a signed timestamp.
	coarse = time.Second
	// maxDelay is how late the engine may start an attempt that is due, in addition to
	// coarse.
	maxDelay = time.Second
)

// written returns a retry schedule as written in the Caddyfile.
func written(waits []time.Duration) string {
	text := "retry"
	for _, wait := range waits {
		text += " " + wait.String()
	}
	return text
}

func TestRetryScheduleEndsInDeadTask(t *testing.T) {
	tasks := pick(10, 50, 500)
	waited := schedule[:pick(8, 8, len(schedule))] // 18 hours, or all of them
	long := time.Duration(pick(25, 25, 79)) * time.Hour
	dir := t.TempDir()
	redelivered := false // set between attempts
	rcv := newFakeReceiver(t, func(w http.ResponseWriter, path string, before int) int {
		switch {
		case path == "/seconds" && before == 0:
			w.Header().Set("Retry-After", "3600")
			return http.StatusServiceUnavailable
		case path == "/date" && before == 0:
			w.Header().Set("Retry-After", "Sat, 01 Jan 2000 05:00:00 GMT")
			return http.StatusTooManyRequests
		case path == "/year" && before == 0:
			w.Header().Set("Retry-After", "31536000")
			return http.StatusServiceUnavailable
		case path == "/day" && before < len(waited), path == "/dead" && !redelivered:
			return http.StatusInternalServerError
		case path == "/gone" && !redelivered:
			return http.StatusGone
		default:
			return http.StatusOK
		}
	})
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		g := startFake(t, dir, gatewaytest.Delivering("secret "+hmacSecret, written(waited)), "callback\nrespond done")
		ids := make(map[string]string)
		for _, path := range []string{"/seconds", "/date", "/year", "/day", "/gone"} {
			ids[path] = g.post("/", rcv.URL+path)
			rcv.ledger.Accept(ids[path])
		}
		var dead []string
		for range tasks {
			dead = append(dead, g.post("/", rcv.URL+"/dead"))
			rcv.ledger.Accept(dead[len(dead)-1])
		}
		gatewaytest.Pause(long)
		synctest.Wait()

		waits(t, "a Retry-After of an hour", rcv.times(ids["/seconds"]), time.Hour, time.Hour)
		if at := rcv.times(ids["/date"]); len(at) != 2 || at[1].Before(start.Add(5*time.Hour)) || at[1].After(start.Add(5*time.Hour+maxDelay)) {
			t.Errorf("attempts after a Retry-After of five o'clock: %v", at)
		}
		waits(t, "a Retry-After of a year, capped", rcv.times(ids["/year"]), 24*time.Hour, 24*time.Hour)
		if at := rcv.times(ids["/day"]); len(at) != len(waited)+1 {
			t.Errorf("attempts of a receiver that recovers for the last one: %v", at)
		}
		for _, path := range []string{"/seconds", "/date", "/year", "/day"} {
			if doc := g.task(ids[path]); doc.State != "done" || doc.Status != "COMPLETE" {
				t.Errorf("%s is %+v", path, doc)
			}
		}
		for _, id := range append(dead, ids["/gone"]) {
			if doc := g.task(id); doc.State != "dead" || doc.Status != "COMPLETE" || len(doc.Attempts) != len(rcv.times(id)) {
				t.Errorf("a dead task is %+v", doc)
			}
		}
		if n := len(rcv.times(ids["/gone"])); n != 1 {
			t.Errorf("a receiver that answered 410 was called %d times", n)
		}
		onSchedule(t, rcv, waited, dead)

		// Redeliver manually, later.
		redelivered = true
		gatewaytest.Pause(time.Hour)
		for _, id := range append(dead, ids["/gone"]) {
			g.admin(http.MethodPost, "tasks/"+id+"/redeliver", nil)
		}
		gatewaytest.Pause(time.Minute)
		synctest.Wait()
		for _, id := range append(dead, ids["/gone"]) {
			if doc := g.task(id); doc.State != "done" {
				t.Errorf("the redelivered task is %+v", doc)
			}
		}
		t.Logf("%v of gateway time", time.Since(start))
		g.stop()
	})
	report(t, fmt.Sprintf("12. %v of retries in fake time, dead letters and redelivery", long), tasks+5, rcv.ledger.Tally())
}

// waits checks that a callback was sent twice, and the wait in between.
func waits(t *testing.T, what string, at []time.Time, least, most time.Duration) {
	t.Helper()
	if len(at) != 2 {
		t.Errorf("%s: sent at %v", what, at)
		return
	}
	if got := at[1].Sub(at[0]); got < least-coarse || got > most+coarse+maxDelay {
		t.Errorf("%s: the wait was %v, want %v to %v", what, got, least, most)
	}
}

// onSchedule checks when the callbacks of dead tasks were sent.
func onSchedule(t *testing.T, rcv *fakeReceiver, waited []time.Duration, ids []string) {
	t.Helper()
	for n, wait := range waited {
		jitter := min(wait/5, 15*time.Minute)
		shortest, longest := 1000*time.Hour, time.Duration(0)
		for _, id := range ids {
			at := rcv.times(id)
			if len(at) != len(waited)+1 {
				t.Fatalf("%d attempts were made: %v", len(at), at)
			}
			got := at[n+1].Sub(at[n])
			shortest, longest = min(shortest, got), max(longest, got)
		}
		if shortest < wait-coarse || longest > wait+jitter+coarse+maxDelay {
			t.Errorf("wait %d was %v to %v, want %v to %v", n+1, shortest, longest, wait, wait+jitter)
		}
		if wait >= time.Hour && longest-shortest < jitter/4 {
			t.Errorf("wait %d was %v to %v, so there is hardly any jitter", n+1, shortest, longest)
		}
	}
}
