package integration

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// run is a task of a schedule that the app received.
type run struct {
	id, uri string
	at      time.Time
}

// newScheduledApp starts an app that reports each task.
func newScheduledApp(t *testing.T) (addr string, runs chan run) {
	runs = make(chan run, 1000)
	addr = gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		runs <- run{r.Header.Get("beam-task-id"), r.RequestURI, time.Now()}
	})
	return addr, runs
}

func nextRun(t *testing.T, runs chan run) run {
	t.Helper()
	select {
	case k := <-runs:
		return k
	case <-time.After(gatewaytest.Patience):
		t.Fatal("no run started")
		panic("unreachable")
	}
}

func every(d, uri string) string {
	return fmt.Sprintf("queue q {\nschedule @every %s {\nuri %s\n}\n}", d, uri)
}

func TestMissedRunsAreReplacedByOne(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*gatewaytest.Gateway){
		"stopped": func(g *gatewaytest.Gateway) { g.Stop() },
		"killed":  func(g *gatewaytest.Gateway) { g.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app, runs := newScheduledApp(t)
			g := gatewaytest.Start(t, every("15s", "/t"), "task_queue /t* q {\nreverse_proxy "+app+"\n}")
			id := nextRun(t, runs).id
			seen := map[string]bool{id: true}
			reaches(t, g, "/t", id, task.Done) // otherwise it would run again
			var schedules []struct {
				NextRun time.Time `json:"next_run"`
			}
			adminAPI(t, g).ask(http.MethodGet, "schedules", http.StatusOK, &schedules)
			missed := schedules[0].NextRun
			end(g)
			gatewaytest.Pause(31 * time.Second) // two run times
			for len(runs) > 0 {
				t.Fatalf("the task %s started too soon", (<-runs).id)
			}
			g.Start()
			first := nextRun(t, runs)
			second := nextRun(t, runs)
			// A slow start may miss the third run time, too.
			if third := missed.Add(30 * time.Second); second.at.Before(third) {
				t.Errorf("after the run that replaces those from %v on, another started at %v, before %v", missed, second.at, third)
			}
			for _, k := range []run{first, second} {
				if seen[k.id] || k.id == "" {
					t.Errorf("the task %q started twice", k.id)
				}
				seen[k.id] = true
			}
		})
	}
}

func TestRunIsSkippedWhileOneWaits(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	g := gatewaytest.Start(t, "queue q {\nworkers 1\nschedule @every 1s {\nuri /t\n}\n}", "task_queue /t* q {\nreverse_proxy "+app+"\n}")
	a := adminAPI(t, g)
	seen := make(map[string]bool)
	gatewaytest.Eventually(t, "five run times pass", func() error {
		var schedules []map[string]string
		if err := a.try(http.MethodGet, "schedules", http.StatusOK, &schedules); err != nil {
			return err
		}
		last, next := schedules[0]["last_run"], schedules[0]["next_run"]
		if last != "" && next <= last {
			t.Errorf("the run after %s is at %s", last, next)
		}
		if seen[last] = true; len(seen) < 6 {
			return fmt.Errorf("%d have", len(seen))
		}
		return nil
	})
	var queues []struct{ Queued, Running int }
	if err := a.try(http.MethodGet, "queues", http.StatusOK, &queues); err != nil {
		t.Fatal(err)
	}
	if len(queues) != 1 || queues[0].Queued != 1 || queues[0].Running != 1 {
		t.Errorf("the queue has %+v; expected one task running and one queued", queues)
	}
}

func TestFailedReloadKeepsSchedules(t *testing.T) {
	t.Parallel()
	app, runs := newScheduledApp(t)
	site := "task_queue /t* q {\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, every("1s", "/t/old"), site)
	nextRun(t, runs)
	// The other site cannot be served. Apps start in any order, so the schedules may or
	// may not be set before the failure.
	g.Configure(every("1s", "/t/new"), site+"\n}\nhttp://192.0.2.77:1 {\nbind 192.0.2.77\nrespond ok")
	for range 6 {
		if err := g.Reload(); err == nil {
			t.Fatal("the reload succeeded")
		}
	}
	for old := 0; old < 3; old++ {
		if nextRun(t, runs).uri != "/t/old" {
			old = -1 // a run that the new generation has queued
		}
	}
}

func TestReloadKeepsRunTimes(t *testing.T) {
	t.Parallel()
	app, runs := newScheduledApp(t)
	site := "task_queue /t* q {\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, every("4s", "/t/kept"), site)
	started := time.Now()
	// If a reload restarted the interval, no run would occur while reloads continue.
	for i := 0; len(runs) == 0; i++ {
		gatewaytest.Pause(500 * time.Millisecond)
		if time.Since(started) > gatewaytest.Patience {
			t.Fatal("no run started during many reloads")
		}
		g.Configure(every("4s", "/t/kept")+fmt.Sprintf("\nqueue other {\nattempts %d\n}", i+1), site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	<-runs

	g.Configure(every("1s", "/t/changed"), site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	k := nextRun(t, runs)
	for k.uri == "/t/kept" { // one from before the reload
		k = nextRun(t, runs)
	}
	seen := map[string]bool{k.id: true}
	for range 4 {
		k = nextRun(t, runs)
		if k.uri != "/t/changed" || seen[k.id] {
			t.Errorf("a run of %s is the task %s", k.uri, k.id)
		}
		seen[k.id] = true
	}

	g.Configure("", site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	scrape(t, g, `caddy_callback_tasks{state="queued"} 0`, `caddy_callback_tasks{state="running"} 0`)
	for len(runs) > 0 {
		<-runs
	}
	gatewaytest.Pause(2500 * time.Millisecond)
	if len(runs) > 0 {
		t.Errorf("a schedule that was taken out made %d tasks", len(runs))
	}
}

func TestScheduleBodyNamesCallback(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Host, r.Header.Get("X-Kind"), body)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, fmt.Sprintf(`
	queue q {
		schedule @every 1s {
			method PUT
			uri /t
			header X-Kind nightly
			header host reports.example
			body `+"`"+`{"callback_url":%q}`+"`"+`
		}
	}`, rcv.URL), "callback\ntask_queue /t* q {\nreverse_proxy "+app+"\n}")
	c := rcv.Next(t) // the operator wrote the body, so a private address is allowed
	if c.Status() != "COMPLETE" || !strings.HasPrefix(c.Body, "response=PUT+reports.example+nightly+") {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	resp, text := g.Do(http.MethodGet, "/t/"+c.TaskID(), "")
	if resp.StatusCode != http.StatusOK || !strings.Contains(text, c.TaskID()) {
		t.Errorf("its document is %s %s", resp.Status, text)
	}
}

func TestScheduleTimeZones(t *testing.T) {
	t.Parallel()
	now := time.Now().In(zone(t, "Asia/Tokyo")).Add(90 * time.Second)
	g := gatewaytest.New(t, fmt.Sprintf("queue q {\nschedule \"%d %d * * *\" Asia/Tokyo\nschedule \"30 2 * * MON-FRI\" Europe/Paris\nschedule @daily\n}",
		now.Minute(), now.Hour()), "task_queue /t* q {\nrespond yes\n}")
	g.Start() // the engine stores all of them
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	location, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return location
}
