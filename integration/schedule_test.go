package integration

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// tick is a task of a schedule that reached the app.
type tick struct {
	id, uri string
	at      time.Time
}

// newClockedApp starts an app that tells of each task it gets.
func newClockedApp(t *testing.T) (addr string, ticks chan tick) {
	ticks = make(chan tick, 1000)
	addr = gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		ticks <- tick{r.Header.Get("beam-task-id"), r.RequestURI, time.Now()}
	})
	return addr, ticks
}

func nextTick(t *testing.T, ticks chan tick) tick {
	t.Helper()
	select {
	case k := <-ticks:
		return k
	case <-time.After(gatewaytest.Patience):
		t.Fatal("no tick came")
		panic("unreachable")
	}
}

func every(d, uri string) string {
	return fmt.Sprintf("queue q {\nschedule @every %s {\nuri %s\n}\n}", d, uri)
}

func TestTicksMissedWhileNoGatewayRanComeOnce(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*gatewaytest.Gateway){
		"stopped": func(g *gatewaytest.Gateway) { g.Stop() },
		"killed":  func(g *gatewaytest.Gateway) { g.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app, ticks := newClockedApp(t)
			g := gatewaytest.Start(t, every("5s", "/t"), "task_queue /t* q {\nreverse_proxy "+app+"\n}")
			seen := map[string]bool{nextTick(t, ticks).id: true}
			end(g)
			gatewaytest.Pause(11 * time.Second) // two ticks, or three
			for len(ticks) > 0 {
				seen[(<-ticks).id] = true // it was begun as the gateway ended
			}
			g.Start()
			first := nextTick(t, ticks)
			second := nextTick(t, ticks)
			if wait := second.at.Sub(first.at); wait < 1500*time.Millisecond {
				t.Errorf("another tick came %v after the missed one", wait)
			}
			for _, k := range []tick{first, second} {
				if seen[k.id] || k.id == "" {
					t.Errorf("the task %q came twice", k.id)
				}
				seen[k.id] = true
			}
		})
	}
}

func TestANextTickThatIsOverIsNotTold(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { <-release })
	t.Cleanup(func() { close(release) })
	g := gatewaytest.Start(t, "queue q {\nworkers 1\nschedule @every 2s {\nuri /t\n}\n}", "task_queue /t* q {\nreverse_proxy "+app+"\n}")
	a := adminAPI(t, g)
	told := func(want func(last, next string) bool) func() error {
		return func() error {
			var schedules []map[string]string
			if err := a.try(http.MethodGet, "schedules", http.StatusOK, &schedules); err != nil {
				return err
			}
			if !want(schedules[0]["last_tick"], schedules[0]["next_tick"]) {
				return fmt.Errorf("they are %v", schedules)
			}
			return nil
		}
	}
	gatewaytest.Eventually(t, "the next tick is told", told(func(last, next string) bool { return last != "" && next > last }))
	// The only worker is busy: the ticks that follow wait.
	gatewaytest.Eventually(t, "it is not when it is over", told(func(last, next string) bool { return last != "" && next == "" }))
}

func TestAReloadThatFailsKeepsTheSchedules(t *testing.T) {
	t.Parallel()
	app, ticks := newClockedApp(t)
	site := "task_queue /t* q {\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, every("1s", "/t/old"), site)
	nextTick(t, ticks)
	// The other site cannot be served. Apps start in any order: whether the
	// schedules are set before that is found out is a matter of luck.
	g.Configure(every("1s", "/t/new"), site+"\n}\nhttp://192.0.2.77:1 {\nbind 192.0.2.77\nrespond ok")
	for range 6 {
		if err := g.Reload(); err == nil {
			t.Fatal("the reload succeeded")
		}
	}
	for nextTick(t, ticks).uri != "/t/old" {
		// One may have come in the meantime.
	}
	for range 2 {
		if k := nextTick(t, ticks); k.uri != "/t/old" {
			t.Errorf("%s ticks", k.uri)
		}
	}
}

func TestAReloadKeepsASchedulesPlace(t *testing.T) {
	t.Parallel()
	app, ticks := newClockedApp(t)
	site := "task_queue /t* q {\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, every("4s", "/t/kept"), site)
	started := time.Now()
	// If a reload began the interval anew, no tick would come while they go on.
	for i := 0; len(ticks) == 0; i++ {
		gatewaytest.Pause(500 * time.Millisecond)
		if time.Since(started) > gatewaytest.Patience {
			t.Fatal("no tick came over many reloads")
		}
		g.Configure(every("4s", "/t/kept")+fmt.Sprintf("\nqueue other {\nattempts %d\n}", i+1), site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	<-ticks

	g.Configure(every("1s", "/t/changed"), site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for range 5 {
		k := nextTick(t, ticks)
		if k.uri != "/t/changed" || seen[k.id] {
			t.Errorf("a tick of %s is the task %s", k.uri, k.id)
		}
		seen[k.id] = true
	}

	g.Configure("", site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	gatewaytest.Pause(500 * time.Millisecond) // what was under way
	for len(ticks) > 0 {
		<-ticks
	}
	gatewaytest.Pause(2500 * time.Millisecond)
	if len(ticks) > 0 {
		t.Errorf("a schedule that was taken out made %d tasks", len(ticks))
	}
}

func TestAScheduleMayNameItsCallback(t *testing.T) {
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
			header Host reports.example
			body `+"`"+`{"callback_url":%q}`+"`"+`
		}
	}`, rcv.URL), "callback\ntask_queue /t* q {\nreverse_proxy "+app+"\n}")
	c := rcv.Next(t) // the operator wrote it: it may be a private address
	if c.Status() != "COMPLETE" || !strings.HasPrefix(c.Body, "response=PUT+reports.example+nightly+") {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	resp, text := g.Do(http.MethodGet, "/t/"+c.TaskID(), "")
	if resp.StatusCode != http.StatusOK || !strings.Contains(text, c.TaskID()) {
		t.Errorf("its document is %s %s", resp.Status, text)
	}
}

func TestACronOfFiveFieldsIsTakenInItsZone(t *testing.T) {
	t.Parallel()
	now := time.Now().In(zone(t, "Asia/Tokyo")).Add(90 * time.Second)
	g := gatewaytest.New(t, fmt.Sprintf("queue q {\nschedule \"%d %d * * *\" Asia/Tokyo\nschedule \"30 2 * * MON-FRI\" Europe/Paris\nschedule @daily\n}",
		now.Minute(), now.Hour()), "task_queue /t* q {\nrespond yes\n}")
	g.Start() // the engine takes them all
}

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	location, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return location
}
