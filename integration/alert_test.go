package integration

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// alertBody is the body of an alert.
type alertBody struct {
	Type      string    `json:"type"`
	Timestamp time.Time `json:"timestamp"`
	Count     int       `json:"count"`
	Data      struct {
		TaskID       string    `json:"task_id"`
		Host         string    `json:"callback_host"`
		Status       string    `json:"status"`
		LastCode     int       `json:"last_status_code"`
		LastStatus   int       `json:"last_status"`
		Failures     int       `json:"failures"`
		FailingSince time.Time `json:"failing_since"`
		Used         int64     `json:"used"`
		Limit        int64     `json:"limit"`
	} `json:"data"`
}

// nextAlert waits for the next alert, and checks that it is one.
func nextAlert(t *testing.T, rcv *gatewaytest.Receiver) (a alertBody) {
	t.Helper()
	got := rcv.Next(t)
	if err := verified(hmacSecret, got); err != nil {
		t.Errorf("the alert is not signed: %v", err)
	}
	if err := json.Unmarshal([]byte(got.Body), &a); err != nil || got.Header.Get("Content-Type") != "application/json" ||
		got.Status() != "COMPLETE" || a.Timestamp.IsZero() {
		t.Errorf("the alert is %v %s: %v", got.Header, got.Body, err)
	}
	return a
}

// alerting returns options with alerts to a receiver.
func alerting(ops *gatewaytest.Receiver, delivery ...string) string {
	return gatewaytest.Delivering(append(delivery, "secret "+hmacSecret)...) + "\nalert " + ops.URL + "/alerts"
}

// gone returns a receiver that refuses callbacks for good.
func gone(t *testing.T) *gatewaytest.Receiver {
	return gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusGone) })
}

func TestAlertAboutDeadTask(t *testing.T) {
	t.Parallel()
	ops, a, b := gatewaytest.NewReceiver(t, nil), gone(t), gone(t)
	g := gatewaytest.Start(t, alerting(ops), gatewaytest.ExampleSite(t))
	for _, want := range []struct {
		rcv   *gatewaytest.Receiver
		alert bool
	}{{a, true}, {a, false}, {b, true}} { // one an hour about each host
		id := g.Task(want.rcv.URL + "/hook?token=hunter2")
		g.Attempted(id, 1)
		if !want.alert {
			continue
		}
		got := nextAlert(t, ops)
		if got.Type != "callback_dead" || got.Data.TaskID != id || got.Data.Host != hostOf(t, want.rcv.URL) ||
			got.Data.Status != "COMPLETE" || got.Data.LastCode != http.StatusGone || got.Count != 1 {
			t.Errorf("the alert is %+v", got)
		}
	}
	// An alert is a task that operators can find.
	var list page
	adminAPI(t, g).ask(http.MethodGet, "tasks?route=alert", http.StatusOK, &list)
	if len(list.Tasks) != 2 || list.Tasks[0].CallbackHost != hostOf(t, ops.URL) {
		t.Errorf("the tasks of alerts are %+v", list.Tasks)
	}
}

func TestNoAlertAboutAlerts(t *testing.T) {
	t.Parallel()
	ops := gone(t)
	g := gatewaytest.Start(t, alerting(ops), gatewaytest.ExampleSite(t))
	a := adminAPI(t, g)
	for n := 1; n <= 3; n++ {
		rcv := gone(t)
		g.Task(rcv.URL)
		if got := nextAlert(t, ops); got.Data.Host != hostOf(t, rcv.URL) {
			t.Errorf("the alert is %+v", got)
		}
		g.Eventually("the alert is dead", func() error {
			var list page
			if err := a.try(http.MethodGet, "tasks?route=alert&state=dead", http.StatusOK, &list); err != nil {
				return gatewaytest.Fatal(err)
			}
			if len(list.Tasks) != n {
				return errNotThere
			}
			return nil
		})
	}
	var list page
	a.ask(http.MethodGet, "tasks?route=alert", http.StatusOK, &list)
	if len(list.Tasks) != 3 || len(ops.Got) != 0 {
		t.Errorf("there are %d alerts, %d more came", len(list.Tasks), len(ops.Got))
	}
}

func TestAlertIsKeptAcrossKill(t *testing.T) {
	t.Parallel()
	var works atomic.Bool
	ops := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if !works.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	g := gatewaytest.Start(t, alerting(ops, "retry"+strings.Repeat(" 1s", 60)), gatewaytest.ExampleSite(t))
	rcv := gone(t)
	id := g.Task(rcv.URL)
	nextAlert(t, ops)
	g.Kill()
	works.Store(true)
	g.Start()
	if got := nextAlert(t, ops); got.Data.TaskID != id {
		t.Errorf("the alert is %+v", got)
	}
	g.Metered(map[string]float64{`deliveries_total{outcome="delivered"}`: 1, `tasks{state="delivering"}`: 0})
}

func TestAlertsAboutFailingHost(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	ops := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, alerting(ops, "retry 1s 1h", "pause_after 90m"), gatewaytest.ExampleSite(t))
	listening(g, "on callback_host_failing "+note("events"), "on callback_host_paused "+note("events"))
	since, host := time.Now().UTC().Add(-2*time.Hour).Truncate(time.Second), hostOf(t, rcv.URL)
	e := g.OpenStore()
	err := e.SaveHosts(t.Context(), []engine.HostState{{
		Host: host, Window: 1, Failures: 7, FailingSince: since, LastError: "status 502", LastStatus: http.StatusBadGateway,
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.CloseStore(e)
	g.Start()
	g.Task(rcv.URL)
	var types []string
	for range 2 {
		got := nextAlert(t, ops)
		types = append(types, got.Type)
		if got.Data.Host != host || got.Data.Failures != 8 || !got.Data.FailingSince.Equal(since) || got.Data.LastStatus != http.StatusBadGateway {
			t.Errorf("the alert is %+v", got)
		}
	}
	if slices.Sort(types); !slices.Equal(types, []string{"callback_host_failing", "callback_host_paused"}) {
		t.Errorf("the alerts are %q", types)
	}
	found := strings.Join(events(g, "events", 2), "\n")
	if !strings.Contains(found, "callback_host_failing map[") || !strings.Contains(found, "callback_host_paused map[") {
		t.Errorf("the events are %s", found)
	}
}

func TestAlertAboutNearlyFullStore(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("x"), 6656<<10))
	})
	// Callbacks to the operator's own URL have no quota.
	ops, site := gatewaytest.NewReceiver(t, nil), "callback "+rcv.URL+"\nreverse_proxy "+app
	g := gatewaytest.New(t, "", site)
	g.Configure("engine sqlite "+g.Folder()+" {\nmax_size 64MiB\n}\n"+alerting(ops, "retry 1h"), site)
	listening(g, "on callback_store_nearly_full "+note("events"))
	g.Start()
	// Their callbacks wait, so that nothing can be evicted.
	for range 9 {
		g.Post("/", "{}")
	}
	got := nextAlert(t, ops)
	if got.Type != "callback_store_nearly_full" || got.Data.Limit != 64<<20 || got.Data.Used < got.Data.Limit*9/10 {
		t.Errorf("the alert is %+v", got)
	}
	events(g, "events", 1)
	logs(g, "store is nearly full")
}
