package integration

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// TestKillRepeatsOnlyInFlightDeliveries kills a gateway in the middle of many deliveries.
// How many are in flight depends on the disk: a callback is, until its answer is stored.
func TestKillRepeatsOnlyInFlightDeliveries(t *testing.T) {
	t.Parallel()
	const tasks, kills = 600, 3
	began := make(chan struct{})
	rcv := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) {
		<-began
		gatewaytest.Pause(rand.N(10 * time.Millisecond))
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("per_host 8"), gatewaytest.ExampleSite(t))
	g.Tasks(tasks, to(rcv.URL))
	close(began)
	seen := make(map[string]int)
	count := func() {
		for len(rcv.Got) > 0 {
			seen[rcv.Next(t).TaskID()]++
		}
	}
	stored := make(map[string]int) // by task, how often its callback had come when it was stored as delivered
	for i := range kills {
		rcv.Arrivals(t, seen, (i+1)*tasks/(kills+1))
		g.Kill()
		count() // a stored callback has been answered, and so has been received
		for _, id := range done(g, tasks) {
			if _, known := stored[id]; !known {
				stored[id] = seen[id]
			}
		}
		g.Start()
	}
	rcv.Arrivals(t, seen, tasks)
	g.Stop() // attempts in flight end
	count()
	for id, n := range stored {
		if seen[id] > n {
			t.Errorf("the callback of %s came again after it was stored as delivered", id)
		}
	}
	for id, n := range seen {
		if n > 1+kills {
			t.Errorf("the callback of %s came %d times", id, n)
		}
	}
	t.Logf("%d of %d callbacks were stored as delivered at a kill", len(stored), tasks)
}

// done returns the IDs of up to limit done tasks of a gateway that is not running.
func done(g *gatewaytest.Gateway, limit int) (ids []string) {
	g.T.Helper()
	e := g.OpenStore()
	defer g.CloseStore(e)
	page, err := e.List(g.T.Context(), engine.Filter{States: []task.State{task.Done}}, "", limit)
	if err != nil {
		g.T.Fatal(err)
	}
	for _, rec := range page.Tasks {
		ids = append(ids, rec.ID)
	}
	return ids
}

func TestReloadRepeatsNoDelivery(t *testing.T) {
	t.Parallel()
	const tasks = 600
	began := make(chan struct{})
	rcv := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) {
		<-began
		gatewaytest.Pause(rand.N(20 * time.Millisecond))
	})
	site := gatewaytest.ExampleSite(t)
	g := gatewaytest.Start(t, gatewaytest.Delivering("per_host 4"), site)
	g.Tasks(tasks, to(rcv.URL))
	close(began)
	seen := make(map[string]int)
	for i := range 10 {
		rcv.Arrivals(t, seen, (i+1)*tasks/12)
		g.Configure(gatewaytest.Delivering(fmt.Sprintf("per_host %d\nconcurrency %d", 4+i, 100+i)), site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	rcv.Arrivals(t, seen, tasks)
	if code := g.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for len(rcv.Got) > 0 {
		seen[rcv.Next(t).TaskID()]++
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("the callback of %s arrived %d times", id, n)
		}
	}
}

func TestFailedReloadKeepsDeliveries(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	site := gatewaytest.ExampleSite(t)
	g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+hmacSecret), site)
	// The other site cannot be served: the generation starts and is stopped again.
	g.Configure(gatewaytest.Delivering("secret "+otherSecret, "per_host 1"), site+"\n}\nhttp://192.0.2.77:1 {\nbind 192.0.2.77\nrespond ok")
	if err := g.Reload(); err == nil {
		t.Fatal("the reload succeeded")
	}
	for range 10 {
		g.Task(rcv.URL)
		if err := verified(hmacSecret, rcv.Next(t)); err != nil {
			t.Error(err)
		}
	}
	g.Configure(gatewaytest.Delivering("secret "+otherSecret), site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	g.Task(rcv.URL)
	if err := verified(otherSecret, rcv.Next(t)); err != nil {
		t.Error(err)
	}
}

func TestRetrySurvivesKill(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("callback-attempt") != "3" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 5s 5s 5s"), gatewaytest.ExampleSite(t))
	id := g.Task(rcv.URL)
	for n := 1; n <= 3; n++ {
		got := rcv.Next(t)
		for got.Header.Get("callback-attempt") == fmt.Sprint(n-1) {
			got = rcv.Next(t) // an attempt that was in flight when the gateway was killed
		}
		if got.TaskID() != id || got.Header.Get("callback-attempt") != fmt.Sprint(n) {
			t.Errorf("attempt %d has the number %s and the task %s", n, got.Header.Get("callback-attempt"), got.TaskID())
		}
		if n < 3 {
			attemptsStored(t, g, id, n) // and the next one is scheduled
			g.Kill()
			g.Start()
		}
	}
}

// attemptsStored waits until the store has n attempts of a task.
func attemptsStored(t *testing.T, g *gatewaytest.Gateway, id string, n int) {
	t.Helper()
	a := adminAPI(t, g)
	g.Eventually(fmt.Sprintf("%d attempts are stored", n), func() error {
		var doc task.Task
		if err := a.try(http.MethodGet, "tasks/"+id, http.StatusOK, &doc); err != nil {
			return err
		}
		if len(doc.Attempts) < n {
			return fmt.Errorf("%d are", len(doc.Attempts))
		}
		return nil
	})
}

func TestInterruptedAttemptIsNotCounted(t *testing.T) {
	t.Parallel()
	var stopped atomic.Bool
	rcv := gatewaytest.NewReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
		if !stopped.Load() {
			<-r.Context().Done() // does not respond until the gateway disconnects
		}
	})
	g := gatewaytest.New(t, gatewaytest.Delivering("retry 1h"), gatewaytest.ExampleSite(t))
	g.Edit("auto_https off", "auto_https off\ngrace_period 300ms")
	g.Start()
	id := g.Task(rcv.URL)
	rcv.Next(t)
	if code := g.Stop(); code != 0 {
		t.Errorf("the gateway ended with %d", code)
	}
	stopped.Store(true)
	g.Start()
	// The attempt is repeated at once instead of in an hour, and counts as the first.
	if c := rcv.Next(t); c.TaskID() != id || c.Header.Get("callback-attempt") != "1" {
		t.Errorf("the callback is %v", c.Header)
	}
	if got := g.Attempted(id, 1); len(got) != 1 || got[0].State != "delivered" {
		t.Errorf("the attempts are %+v", got)
	}
}

func TestAttemptLongerThanLeaseIsMadeOnce(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	var slow atomic.Bool
	slow.Store(true)
	const long = gatewaytest.ShortLease * 3 / 2
	rcv := gatewaytest.NewReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
		if slow.CompareAndSwap(true, false) {
			select {
			case <-time.After(long):
			case <-r.Context().Done():
				t.Error("the gateway has hung up")
			}
		}
	})
	options := c.Options() + "\ndelivery {\ntimeout 50s\nallow 127.0.0.1\nports any\n}"
	options = strings.Replace(options, gatewaytest.ToLocal, "", 1)
	a := gatewaytest.Start(t, options, gatewaytest.ExampleSite(t))
	b := gatewaytest.Start(t, options, gatewaytest.ExampleSite(t)) // takes expired leases
	id := a.Task(rcv.URL)
	rcv.Next(t)
	var got []gatewaytest.Attempt
	gatewaytest.Eventually(t, "the attempt ends", func() error {
		if got = append(a.Attempts(id), b.Attempts(id)...); len(got) == 0 {
			return fmt.Errorf("attempts continue")
		}
		return nil
	})
	if len(got) != 1 || got[0].State != "delivered" || got[0].Duration < gatewaytest.ShortLease.Seconds() || len(rcv.Got) > 0 {
		t.Errorf("the attempts are %+v; %d more callbacks arrived", got, len(rcv.Got))
	}
}

func TestDeliveriesStopAndContinueWithApp(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("callback-attempt") == "1" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	site := gatewaytest.ExampleSite(t)
	const wait = 10 * time.Second // the reload ends before the second attempt is due
	options := gatewaytest.Delivering("retry " + wait.String())
	g := gatewaytest.Start(t, options, site)
	id := g.Task(rcv.URL)
	rcv.Next(t)
	g.Attempted(id, 1)
	// A configuration without callbacks has no app, so the engine closes.
	plain := fmt.Sprintf("{\nadmin %s\nauto_https off\n}\nhttp://%s {\nrespond plain\n}\n", g.Admin, g.Addr)
	if err := os.WriteFile(g.File, []byte(plain), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	gatewaytest.Pause(wait * 5 / 4) // the second attempt becomes due
	if n := len(rcv.Got); n > 0 {
		t.Errorf("%d attempts were made without the app", n)
	}
	g.Configure(options, site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	if got := rcv.Next(t); got.TaskID() != id || got.Header.Get("callback-attempt") != "2" {
		t.Errorf("unexpected attempt %s of %s", got.Header.Get("callback-attempt"), got.TaskID())
	}
	if strings.Contains(g.Log.String(), "panic") {
		t.Error("something panicked")
	}
}
