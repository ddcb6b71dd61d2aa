package integration

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestCallbackHeaders(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), gatewaytest.ExampleSite(t))
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

	want := map[string]string{
		"Content-Type":             "application/x-www-form-urlencoded",
		"Content-Length":           "25",
		"Beam-Task-Id":             g.Task(rcv.URL),
		"X-Beam-Task-Status":       "COMPLETE",
		"User-Agent":               "caddy-callback/0.1.0",
		"Callback-Attempt":         "1",
		"Callback-Upstream-Status": "200",
		"Callback-Hop":             "1",
		"Accept":                   "*/*",
	}
	want["Idempotency-Key"] = want["Beam-Task-Id"]
	check := func(got gatewaytest.Callback) {
		t.Helper()
		want["Callback-Hop-Mac"] = got.Header.Get("Callback-Hop-Mac") // its key is random
		for _, name := range slices.Sorted(maps.Keys(got.Header)) {
			if v := got.Header[name]; len(v) != 1 || v[0] != want[name] {
				t.Errorf("%s is %q, want %q", name, v, want[name])
			}
		}
		for name := range want {
			if got.Header[name] == nil {
				t.Errorf("%s is missing", name)
			}
		}
	}
	check(rcv.Next(t))

	want["Beam-Task-Id"] = g.Task(rcv.URL, "Traceparent", traceparent)
	want["Idempotency-Key"] = want["Beam-Task-Id"]
	want["Traceparent"] = traceparent
	check(rcv.Next(t))
}

func TestUnansweredTaskHasNoUpstreamStatus(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), "callback\nreverse_proxy "+freeaddr.New(t))
	g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	got := rcv.Next(t)
	if got.Status() != "FAILED" || !strings.HasPrefix(got.Body, "error=") {
		t.Errorf("the callback is %s %s", got.Status(), got.Body)
	}
	if v, ok := got.Header["Callback-Upstream-Status"]; ok {
		t.Errorf("Callback-Upstream-Status is %q", v)
	}
}

func TestAttemptsFollowRetrySchedule(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("callback-attempt") != "3" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1s 2s 1h"), gatewaytest.ExampleSite(t))
	id := g.Task(rcv.URL)
	var at []time.Time
	for n := 1; n <= 3; n++ {
		got := rcv.Next(t)
		if got.TaskID() != id || got.Header.Get("callback-attempt") != strconv.Itoa(n) {
			t.Errorf("attempt %d has the number %s and the task %s", n, got.Header.Get("callback-attempt"), got.TaskID())
		}
		if got.Body != "response=example+response" {
			t.Errorf("attempt %d has the body %q", n, got.Body)
		}
		at = append(at, got.At)
	}
	for i, wait := range []time.Duration{time.Second, 2 * time.Second} {
		if waited := at[i+1].Sub(at[i]); waited < wait {
			t.Errorf("attempt %d started %v after the previous one, want %v", i+2, waited, wait)
		}
	}
	logged := g.Attempted(id, 3)
	for i, want := range []gatewaytest.Attempt{
		{Attempt: 1, State: "retry", StatusCode: 500, RetryIn: 1},
		{Attempt: 2, State: "retry", StatusCode: 500, RetryIn: 2},
		{Attempt: 3, State: "delivered", StatusCode: 200},
	} {
		got := logged[i]
		if got.Attempt != want.Attempt || got.State != want.State || got.StatusCode != want.StatusCode {
			t.Errorf("the log has %+v, want %+v", got, want)
		}
		if got.RetryIn < want.RetryIn || got.RetryIn > want.RetryIn*1.2 {
			t.Errorf("attempt %d is retried in %vs, want %vs and up to a fifth more", i+1, got.RetryIn, want.RetryIn)
		}
	}
}

func TestOnly2xxIsSuccess(t *testing.T) {
	t.Parallel()
	var status atomic.Int32
	var target string
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", target)
		w.WriteHeader(int(status.Load()))
	})
	target = rcv.URL + "/elsewhere"
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1h"), gatewaytest.ExampleSite(t))
	for code, state := range map[int]string{
		200: "delivered", 201: "delivered", 202: "delivered", 204: "delivered", 226: "delivered", 299: "delivered",
		300: "retry", 301: "retry", 302: "retry", 303: "retry", 304: "retry", 307: "retry", 308: "retry",
		400: "retry", 401: "retry", 404: "retry", 409: "retry", 429: "retry", 500: "retry", 503: "retry", 599: "retry",
		410: "dead",
	} {
		status.Store(int32(code))
		id := g.Task(rcv.URL)
		if got := g.Attempted(id, 1); got[0].State != state || got[0].StatusCode != code {
			t.Errorf("after %d the log has %+v, want %s", code, got[0], state)
		}
	}
	for len(rcv.Got) > 0 {
		// A followed redirect would arrive as another request.
		if got := rcv.Next(t); got.Header.Get("callback-attempt") != "1" {
			t.Errorf("unexpected attempt %s", got.Header.Get("callback-attempt"))
		}
	}
	if n := len(g.Attempts("")); n != 22 {
		t.Errorf("%d attempts are logged for 22 callbacks", n)
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	t.Parallel()
	elsewhere := gatewaytest.NewReceiver(t, nil)
	var to atomic.Value
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", to.Load().(string))
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1h"), gatewaytest.ExampleSite(t))
	for _, target := range []string{elsewhere.URL, "/again", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd"} {
		to.Store(target)
		id := g.Task(rcv.URL)
		rcv.Next(t)
		if got := g.Attempted(id, 1)[0]; got.State != "retry" || got.StatusCode != 307 || got.Error != "" {
			t.Errorf("a redirect to %s is logged as %+v", target, got)
		}
	}
	if len(elsewhere.Got)+len(rcv.Got) > 0 {
		t.Error("a redirect was followed")
	}
}

func TestRetryAfterIsCapped(t *testing.T) {
	t.Parallel()
	const day = 24 * 60 * 60
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		if r.Header.Get("callback-attempt") == "1" {
			w.Header().Set("Retry-After", query.Get("after"))
			status, _ := strconv.Atoi(query.Get("status"))
			w.WriteHeader(status)
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 10s 10s"), gatewaytest.ExampleSite(t))
	for _, test := range []struct {
		status   int
		after    string
		min, max float64
	}{
		{429, "60", 60, 60},
		{503, "60", 60, 60},
		{500, "60", 10, 12},
		{429, "1", 10, 12},
		{429, "0", 10, 12},
		{429, "-60", 10, 12},
		{429, "soon", 10, 12},
		{429, "", 10, 12},
		{429, "1.5", 10, 12},
		{503, "31536000", day, day},
		{503, "99999999999999999999999999", day, day},
		{503, time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), 1800, 3600}, // the date is from before the gateway started
		{503, time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat), 10, 12},
		{503, time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat), day, day},
	} {
		id := g.Task(fmt.Sprintf("%s/?status=%d&after=%s", rcv.URL, test.status, strings.ReplaceAll(test.after, " ", "+")))
		got := g.Attempted(id, 1)[0]
		if got.RetryIn < test.min || got.RetryIn > test.max {
			t.Errorf("after %d with Retry-After: %s the wait is %vs, want %v to %v",
				test.status, test.after, got.RetryIn, test.min, test.max)
		}
	}
}

func TestRetryAfterIsRespected(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("callback-attempt") == "1" {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 100ms"), gatewaytest.ExampleSite(t))
	g.Task(rcv.URL)
	first, second := rcv.Next(t), rcv.Next(t)
	if waited := second.At.Sub(first.At); waited < 1900*time.Millisecond {
		t.Errorf("the second attempt started after %v", waited)
	}
}

func TestDeadLettersCanBeRedelivered(t *testing.T) {
	t.Parallel()
	answer := strings.Repeat("no\x00<é>\xff\x1b[2J", 1000)
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gone" {
			w.WriteHeader(http.StatusGone)
		} else {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = io.WriteString(w, answer)
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 100ms 100ms"), gatewaytest.ExampleSite(t))
	gone, failed := g.Task(rcv.URL+"/gone"), g.Task(rcv.URL+"/fails")
	g.Attempted(gone, 1)
	if got := g.Attempted(failed, 3)[2]; got.State != "dead" || got.RetryIn != 0 {
		t.Errorf("the last attempt is logged as %+v", got)
	}
	if code := g.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	dead := g.Dead()
	if len(dead) != 2 {
		t.Fatalf("%d callbacks are dead", len(dead))
	}
	for id, tries := range map[string]int{gone: 1, failed: 3} {
		rec := dead[id].Record
		if dead[id].Result != `{"response":"example response"}` {
			t.Errorf("the result kept is %q", dead[id].Result)
		}
		if rec.Status != task.Complete || !strings.HasPrefix(rec.Callback.URL, rcv.URL) || len(rec.Attempts) != tries {
			t.Errorf("the record is %+v", rec)
		}
		if got := rec.Attempts[0].Response; len(got) < 1000 || len(got) > 2048 || !strings.HasPrefix(got, "no\uFFFD<é>\uFFFD\uFFFD[2J") {
			t.Errorf("%d bytes of the answer are kept: %.20q", len(got), got)
		}
	}
	// A restart repeats no attempt.
	g.Start()
	alive := g.Task(rcv.URL + "/gone")
	g.Attempted(alive, 1)
	if n := len(g.Attempts("")); n != 5 {
		t.Errorf("%d attempts are logged, not 5", n)
	}
}

func TestFormatsAreDelivered(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.example+json; charset=utf-8")
		w.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(w, `{ "response": 1.0 }`)
	})
	for format, want := range map[string][2]string{
		"json": {"application/json", `{"task_id":%q,"status":"FAILED","upstream_status":418,"data":{"response":1.0}}`},
		"raw":  {"application/vnd.example+json; charset=utf-8", `{ "response": 1.0 }`},
		"form": {"application/x-www-form-urlencoded", "response=1.0"},
	} {
		g := gatewaytest.Start(t, gatewaytest.Delivering(), fmt.Sprintf("callback {\nformat %s\n}\nreverse_proxy %s", format, app))
		g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
		got := rcv.Next(t)
		body := want[1]
		if strings.Contains(body, "%q") {
			body = fmt.Sprintf(body, got.TaskID())
		}
		if got.Header.Get("Content-Type") != want[0] || got.Body != body {
			t.Errorf("%s: %s %s", format, got.Header.Get("Content-Type"), got.Body)
		}
	}
}
