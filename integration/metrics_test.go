package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMetricsSurviveReload(t *testing.T) {
	t.Parallel()
	working, finish := make(chan struct{}), make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			close(working)
			<-finish
		case "/fails":
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuses" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	site := "callback\nreverse_proxy " + app
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1s 1h"), site)
	post := func(path, hook string) {
		g.Post(path, fmt.Sprintf(`{"callback_url":%q}`, rcv.URL+hook))
	}
	g.Metered(map[string]float64{`tasks{state="running"}`: 0, `tasks{state="delivering"}`: 0, `tasks{state="done"}`: 0,
		`tasks{state="dead"}`: 0, `tasks{state="queued"}`: 0, `deliveries_total{outcome="dead"}`: 0})

	post("/", "/a")
	post("/fails", "/b")
	post("/", "/refuses")
	slow := make(chan struct{})
	go func() {
		defer close(slow)
		post("/slow", "/c")
	}()
	<-working
	want := map[string]float64{
		`tasks_total{route="srv0",status="COMPLETE"}`: 2,
		`tasks_total{route="srv0",status="FAILED"}`:   1,
		`task_duration_seconds_count`:                 3,
		`deliveries_total{outcome="delivered"}`:       2,
		`deliveries_total{outcome="retry"}`:           2,
		`delivery_duration_seconds_count`:             4,
		`delivery_lag_seconds_count`:                  3,
		`tasks{state="running"}`:                      1,
		`tasks{state="delivering"}`:                   1,
		`tasks{state="done"}`:                         2,
		`tasks{state="dead"}`:                         0,
		`tasks{state="queued"}`:                       0,
	}
	g.Metered(want)
	values := g.Metrics()
	for _, name := range []string{"task_duration_seconds_sum", "delivery_duration_seconds_sum", "delivery_lag_seconds_sum"} {
		if sum := values["caddy_callback_"+name]; sum <= 0 || sum > gatewaytest.Patience.Seconds() {
			t.Errorf("%s is %v", name, sum)
		}
	}

	// A reload creates a new registry with counters at zero. The slow task was accepted
	// by the previous generation.
	g.Configure(gatewaytest.Delivering("retry 1h"), site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	g.Metered(map[string]float64{`tasks{state="running"}`: 1, `tasks{state="delivering"}`: 1, `tasks{state="done"}`: 2})
	close(finish)
	<-slow
	post("/", "/d")
	g.Metered(map[string]float64{
		`tasks_total{route="srv0",status="COMPLETE"}`: 1,
		`deliveries_total{outcome="delivered"}`:       2, // the new generation makes that of the slow task
		`tasks{state="running"}`:                      0,
		`tasks{state="done"}`:                         4,
	})
}

func TestMetricsDoNotGrowWithTasksAndHosts(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	_, port, err := net.SplitHostPort(hostOf(t, rcv.URL))
	if err != nil {
		t.Fatal(err)
	}
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1h", "timeout 2s"), gatewaytest.ExampleSite(t))
	g.Task(rcv.URL)
	g.Task("http://127.0.0.9:9/refused")
	g.Attempted("", 2)
	series := func() (names []string) {
		for name := range g.Metrics() {
			if strings.HasPrefix(name, "caddy_callback_") {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		return names
	}
	before := series()
	for i := range 30 {
		g.Task(fmt.Sprintf("http://127.0.0.%d:%s/hook/%d", 1+i%3, port, i))
	}
	g.Attempted("", 32)
	after := series()
	if !slices.Equal(before, after) || len(after) < 10 {
		t.Errorf("there were %d series, now %d", len(before), len(after))
	}
	for _, name := range after {
		if strings.Contains(name, "127.0.0") || strings.Contains(name, "hook") {
			t.Errorf("a label names a host or URL: %s", name)
		}
	}
}

func TestLogHasNoSecretQueryOrBody(t *testing.T) {
	t.Parallel()
	const (
		inQuery   = "hunter2-query"
		inRequest = "hunter2-request"
		inResult  = "hunter2-result"
		inAnswer  = "hunter2-answer"
		inHeader  = "hunter2-header"
		key       = "whsec_aHVudGVyMi1rZXktMTIzNDU2Nzg5MDEyMzQ1Njc4OTA="
	)
	echo := func(conn net.Conn) { _, _ = io.Copy(conn, conn) }
	answerAndEcho := func(conn net.Conn) {
		request := make([]byte, 4096)
		n, _ := conn.Read(request)
		gatewaytest.Write(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"+string(request[:n]))
	}
	fails := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "http://127.0.0.1/?"+inAnswer)
		w.Header().Set("Retry-After", inAnswer)
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, inAnswer)
	})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, inResult) })
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 1h", "timeout 10s", "secret "+key),
		"callback {\nheader X-Token "+inHeader+"\n}\nreverse_proxy "+app)
	targets := []string{
		gatewaytest.NewReceiver(t, nil).URL,
		fails.URL,
		gatewaytest.NewPeer(t, echo),
		gatewaytest.NewPeer(t, answerAndEcho),
		gatewaytest.NewPeer(t, func(net.Conn) {}),
		gatewaytest.NewPeer(t, func(conn net.Conn) { gatewaytest.Write(conn, "HTTP/1.1 200 OK\r\n"+inAnswer+"\r\n\r\n") }),
		gatewaytest.NewPeer(t, func(conn net.Conn) { gatewaytest.Write(conn, "HTTP/1.1 "+inAnswer+"\r\n\r\n") }),
		gatewaytest.NewPeer(t, func(conn net.Conn) {
			gatewaytest.Write(conn, "HTTP/1.1 200 OK\r\nContent-Length: "+inAnswer+"\r\n\r\n")
		}),
		gatewaytest.NewPeer(t, func(conn net.Conn) {
			gatewaytest.Write(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: "+inAnswer+"\r\n\r\n")
		}),
		strings.Replace(gatewaytest.NewPeer(t, echo), "http:", "https:", 1),
		"http://127.0.0.1:1",
		"http://no-such-host.invalid",
	}
	callAll := func() {
		for _, target := range targets {
			resp, text := g.Post("/", fmt.Sprintf(`{"prompt":%q,"callback_url":%q}`, inRequest, target+"?token="+inQuery))
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s %s", target, resp.Status, text)
			}
		}
	}
	callAll()
	g.Attempted("", len(targets))
	if err := g.Reload(); err != nil { // a reload replaces the loggers
		t.Fatal(err)
	}
	callAll()
	for _, got := range g.Attempted("", 2*len(targets)) {
		if got.TaskID == "" || got.CallbackHost == "" || got.Attempt != 1 || got.State == "" || got.Duration <= 0 {
			t.Errorf("an attempt is logged as %+v", got)
		}
	}
	g.Refused("http://10.0.0.1/?token=" + inQuery)
	g.Post("/", `{"callback_url":"http://user:`+inQuery+`@example.com/"}`)
	g.Stop()
	log := g.Log.String()
	if !strings.Contains(log, "Unsolicited response") {
		t.Error("no net/http error quoted the receiver")
	}
	for _, secret := range []string{inQuery, inRequest, inResult, inAnswer, inHeader, key, strings.TrimPrefix(key, "whsec_")} {
		for line := range strings.Lines(log) {
			if strings.Contains(line, secret) {
				t.Errorf("the log contains %s: %s", secret, line)
			}
		}
	}
}

func TestAttemptIsOneLogLine(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), gatewaytest.ExampleSite(t))
	id := g.Task(rcv.URL)
	g.Attempted(id, 1)
	for line := range strings.Lines(g.Log.String()) {
		if !strings.Contains(line, "delivery attempted") {
			continue
		}
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatal(err)
		}
		got := slices.Sorted(maps.Keys(fields))
		want := []string{"attempt", "callback_host", "duration", "error", "level", "logger", "msg", "retry_in", "state", "status_code", "task_id", "ts"}
		if !slices.Equal(got, want) {
			t.Errorf("its fields are %q", got)
		}
		if fields["level"] != "info" || fields["logger"] != "callback" || fields["callback_host"] != hostOf(t, rcv.URL) {
			t.Errorf("it is %s", line)
		}
	}
}
