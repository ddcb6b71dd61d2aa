package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestIdempotencyKeyStartsOneTaskOnTwoGateways(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	var mu sync.Mutex
	runs := make(map[string]int) // by key
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		runs[r.Header.Get("Idempotency-Key")]++
	})
	site := "task_queue /q* q {\nreverse_proxy " + app + "\n}"
	gateways := []*gatewaytest.Gateway{gatewaytest.Start(t, c.Options(), site), gatewaytest.Start(t, c.Options(), site)}
	for i := range 10 {
		key := fmt.Sprint("k", i)
		ids := make(chan string, 32)
		for j := range cap(ids) {
			go func() {
				resp, _, err := gatewaytest.Send(http.MethodPost, gateways[j%2].URL("/q"), strings.NewReader("{}"), "Idempotency-Key", key)
				if err != nil {
					t.Error(err)
					ids <- ""
					return
				}
				ids <- resp.Header.Get("beam-task-id")
			}()
		}
		first := <-ids
		for range cap(ids) - 1 {
			if id := <-ids; id != first || id == "" {
				t.Errorf("%s has the tasks %q and %q", key, first, id)
			}
		}
		reaches(t, gateways[i%2], "/q", first, task.Done)
	}
	mu.Lock()
	defer mu.Unlock()
	for key, n := range runs {
		if n != 1 {
			t.Errorf("%s was run %d times", key, n)
		}
	}
	if len(runs) != 10 {
		t.Errorf("%d of 10 keys were run", len(runs))
	}
}

func TestScheduleRunsOnceAcrossReloadsAndKills(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	app, runs := newScheduledApp(t)
	site := "task_queue /t* q {\nreverse_proxy " + app + "\n}"
	options := c.Options() + "\n" + every("3s", "/t")
	began := time.Now()
	var gateways []*gatewaytest.Gateway
	for range 3 {
		gateways = append(gateways, gatewaytest.Start(t, options, site))
	}
	seen := make(map[string]bool)
	next := func() run {
		t.Helper()
		k := nextRun(t, runs)
		if seen[k.id] || k.id == "" {
			t.Errorf("the task %q started twice", k.id)
		}
		seen[k.id] = true
		// Otherwise it would run again when its gateway is killed.
		reaches(t, gateways[2], "/t", k.id, task.Done)
		return k
	}
	next()
	next()
	if err := gateways[2].Reload(); err != nil {
		t.Fatal(err)
	}
	next()
	gateways[0].KillAtOnce() // before the next run begins
	next()
	gateways[1].KillAtOnce()
	next()
	// Six runs take 15 seconds. If each run made two tasks, they would take six. A
	// slow machine only takes longer.
	if took := next().at.Sub(began); took < 12*time.Second {
		t.Errorf("six runs of three seconds took only %v", took)
	}
}

func TestCancelFromAnotherGateway(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	begun, stopped, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(release) })
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		select {
		case <-r.Context().Done():
			close(stopped)
		case <-release:
		}
	})
	site := "task_queue /q* q {\nreverse_proxy " + app + "\n}"
	a := gatewaytest.Start(t, c.Options(), site)
	resp, _ := a.Do(http.MethodPost, "/q", "") // without a body the app notices a canceled request
	id := resp.Header.Get("beam-task-id")
	<-begun
	b := gatewaytest.Start(t, c.Options(), site)
	if resp, text := b.Do(http.MethodDelete, "/q/"+id, ""); resp.StatusCode != http.StatusAccepted {
		t.Fatalf("canceling: %s %s", resp.Status, text)
	}
	<-stopped
	if doc := reaches(t, b, "/q", id, task.Done); doc.Error != "canceled" {
		t.Errorf("the task is %+v", doc)
	}
}
