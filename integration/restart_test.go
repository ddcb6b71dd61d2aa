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
)

// arrivals counts callbacks by task until all tasks have one, or waits in vain.
func (r *receiver) arrivals(t *testing.T, seen map[string]int, tasks int) {
	t.Helper()
	for len(seen) < tasks {
		seen[r.next(t).id()]++
	}
}

func TestAGatewayKilledInTheMiddleOfDeliveriesRepeatsOnlyWhatWasInFlight(t *testing.T) {
	t.Parallel()
	const tasks, perHost, kills = 600, 8, 3
	began := make(chan struct{})
	rcv := newReceiver(t, func(http.ResponseWriter, *http.Request) {
		<-began
		pause(rand.N(10 * time.Millisecond))
	})
	g := startGateway(t, delivering(fmt.Sprintf("per_host %d", perHost)), exampleSite(t))
	g.tasks(tasks, to(rcv.URL))
	close(began)
	seen := make(map[string]int)
	for i := range kills {
		rcv.arrivals(t, seen, (i+1)*tasks/(kills+1))
		g.kill()
		g.start()
	}
	rcv.arrivals(t, seen, tasks)
	g.stop() // what is in flight ends
	for len(rcv.got) > 0 {
		seen[rcv.next(t).id()]++
	}
	repeated := 0
	for id, n := range seen {
		if repeated += n - 1; n > 1+kills {
			t.Errorf("the callback of %s came %d times", id, n)
		}
	}
	t.Logf("%d of %d callbacks were repeated in %d kills", repeated, tasks, kills)
	// In flight are those that the receiver has, and those it has just answered.
	if repeated > 2*kills*perHost {
		t.Errorf("%d callbacks were repeated, though %d at most were in flight", repeated, 2*kills*perHost)
	}
}

func TestAReloadInTheMiddleOfDeliveriesRepeatsNothing(t *testing.T) {
	t.Parallel()
	const tasks = 600
	began := make(chan struct{})
	rcv := newReceiver(t, func(http.ResponseWriter, *http.Request) {
		<-began
		pause(rand.N(20 * time.Millisecond))
	})
	site := exampleSite(t)
	g := startGateway(t, delivering("per_host 4"), site)
	g.tasks(tasks, to(rcv.URL))
	close(began)
	seen := make(map[string]int)
	for i := range 10 {
		rcv.arrivals(t, seen, (i+1)*tasks/12)
		g.configure(delivering(fmt.Sprintf("per_host %d\nconcurrency %d", 4+i, 100+i)), site)
		if err := g.reload(); err != nil {
			t.Fatal(err)
		}
	}
	rcv.arrivals(t, seen, tasks)
	if code := g.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for len(rcv.got) > 0 {
		seen[rcv.next(t).id()]++
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("the callback of %s came %d times", id, n)
		}
	}
}

func TestAReloadThatFailsLeavesDeliveriesAsTheyWere(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, nil)
	site := exampleSite(t)
	g := startGateway(t, delivering("secret "+hmacSecret), site)
	// The other site cannot be served: the generation starts and is taken back.
	g.configure(delivering("secret "+otherSecret, "per_host 1"), site+"\n}\nhttp://192.0.2.77:1 {\nbind 192.0.2.77\nrespond ok")
	if err := g.reload(); err == nil {
		t.Fatal("the reload succeeded")
	}
	for range 10 {
		g.task(rcv.URL)
		if err := verified(hmacSecret, rcv.next(t)); err != nil {
			t.Error(err)
		}
	}
	g.configure(delivering("secret "+otherSecret), site)
	if err := g.reload(); err != nil {
		t.Fatal(err)
	}
	g.task(rcv.URL)
	if err := verified(otherSecret, rcv.next(t)); err != nil {
		t.Error(err)
	}
}

func TestAScheduledRetrySurvivesAKillAndGoesOnCounting(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("callback-attempt") != "3" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	g := startGateway(t, delivering("retry 2s 2s 2s"), exampleSite(t))
	id := g.task(rcv.URL)
	for n := 1; n <= 3; n++ {
		got := rcv.next(t)
		if got.id() != id || got.header.Get("callback-attempt") != fmt.Sprint(n) {
			t.Errorf("attempt %d says it is attempt %s of %s", n, got.header.Get("callback-attempt"), got.id())
		}
		if n < 3 {
			g.attempted(id, n) // the next is scheduled
			pause(200 * time.Millisecond)
			g.kill()
			g.start()
		}
	}
}

func TestAnAttemptLongerThanTheAckWaitIsMadeOnce(t *testing.T) {
	t.Parallel()
	// The engine would hand a delivery to somebody else after 30 s in which it
	// heard nothing of it.
	var slow atomic.Bool
	slow.Store(true)
	rcv := newReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
		if slow.CompareAndSwap(true, false) {
			select {
			case <-time.After(35 * time.Second):
			case <-r.Context().Done():
				t.Error("the gateway has hung up")
			}
		}
	})
	g := startGateway(t, delivering("timeout 50s", "per_host 8"), exampleSite(t))
	ids := map[string]bool{}
	for range 3 { // one begins, the others wait in its lane
		ids[g.task(rcv.URL)] = true
	}
	first := rcv.next(t)
	if got := g.attempted(first.id(), 1)[0]; got.State != "delivered" || got.Duration < 30 {
		t.Errorf("it is logged as %+v", got)
	}
	delete(ids, first.id())
	for len(ids) > 0 {
		got := rcv.next(t)
		if !ids[got.id()] || got.header.Get("callback-attempt") != "1" {
			t.Errorf("the callback of %s came twice", got.id())
		}
		delete(ids, got.id())
	}
}

func TestDeliveriesStopWithTheAppAndGoOnWhenItIsBack(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("callback-attempt") == "1" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	site := exampleSite(t)
	g := startGateway(t, delivering("retry 1s"), site)
	id := g.task(rcv.URL)
	rcv.next(t)
	g.attempted(id, 1)
	// A configuration without callbacks: no app, and its engine closes.
	plain := fmt.Sprintf("{\nadmin %s\nauto_https off\n}\nhttp://%s {\nrespond plain\n}\n", g.admin, g.addr)
	if err := os.WriteFile(g.file, []byte(plain), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := g.reload(); err != nil {
		t.Fatal(err)
	}
	pause(2 * time.Second) // the second attempt falls due
	if n := len(rcv.got); n > 0 {
		t.Errorf("%d attempts were made without the app", n)
	}
	g.configure(delivering("retry 1s"), site)
	if err := g.reload(); err != nil {
		t.Fatal(err)
	}
	if got := rcv.next(t); got.id() != id || got.header.Get("callback-attempt") != "2" {
		t.Errorf("attempt %s of %s came", got.header.Get("callback-attempt"), got.id())
	}
	if strings.Contains(g.log.String(), "panic") {
		t.Error("something panicked")
	}
}
