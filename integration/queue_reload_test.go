package integration

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestRemovedQueueKeepsTasks(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { <-finish })
	site := "task_queue /q* q {\nreverse_proxy " + app + "\n}"
	other := "task_queue /r* r {\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, "queue q {\nworkers 1\n}", site)
	running := accepted(t, g, "/q", "{}")
	reaches(t, g, "/q", running, task.Running)
	waiting := accepted(t, g, "/q", "{}")
	change := func(options, site string) {
		t.Helper()
		g.Configure(options, site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	change("", other)
	// Caddy reports a reload as done before the old server has shut down.
	g.Eventually("the queue is taken out", func() error {
		if resp, _ := g.Do(http.MethodGet, "/q/"+waiting, ""); resp.Header.Get("Content-Type") != "" {
			return fmt.Errorf("it answers %s", resp.Status)
		}
		return nil
	})
	added := accepted(t, g, "/r", "{}")
	reaches(t, g, "/r", added, task.Running)
	change("queue q {\nworkers 2\n}", site+"\n"+other)
	reaches(t, g, "/q", running, task.Running) // the reload does not affect it
	reaches(t, g, "/q", waiting, task.Running) // there are two workers now
	close(finish)
	for _, id := range []string{running, waiting} {
		if doc := reaches(t, g, "/q", id, task.Done); doc.Status != task.Complete {
			t.Errorf("the task is %+v", doc)
		}
	}
	if doc := reaches(t, g, "/r", added, task.Done); doc.Status != task.Complete {
		t.Errorf("the task is %+v", doc)
	}
}

func TestReloadKeepsInFlightTasks(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}, 10), make(chan struct{})
	broken := make(chan struct{}, 10)
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-finish:
		case <-r.Context().Done():
			broken <- struct{}{}
		}
	})
	site := "task_queue /q* q {\nreverse_proxy " + app + "\n}"
	options := func(attempts int) string {
		return fmt.Sprintf("queue q {\nworkers 1\nattempts %d\n}\n}\ngrace_period 1ms\nservers {", attempts)
	}
	g := gatewaytest.Start(t, options(1), site)
	id := accepted(t, g, "/q", "{}")
	<-begun
	for i := range 3 { // the first grace period ends before the last configuration is loaded
		g.Configure(options(2+i), site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	close(finish)
	if doc := reaches(t, g, "/q", id, task.Done); doc.Status != task.Complete {
		t.Errorf("the task is %+v", doc)
	}
	if len(begun) > 0 || len(broken) > 0 {
		t.Errorf("the task was broken off %d times and begun again %d times", len(broken), len(begun))
	}
}

func TestStopReleasesTasksThatSurvivedReload(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{}, 10)
	block := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-block
	})
	site := "task_queue /q* q {\nreverse_proxy " + app + "\n}"
	options := "queue q {\nattempts 1\n}\n"
	g := gatewaytest.Start(t, options, site)
	id := accepted(t, g, "/q", "{}")
	<-begun
	g.Configure(options+"}\ngrace_period 1s\nservers {", site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	if code := g.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	close(block)
	g.Start()
	if doc := reaches(t, g, "/q", id, task.Done); doc.Status != task.Complete {
		t.Errorf("the task, which had one attempt, is %+v", doc)
	}
}

func TestReloadKeepsWorkerLimit(t *testing.T) {
	t.Parallel()
	var running, most atomic.Int32
	next := make(chan string, 100)
	finish := make(chan struct{})
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		n := running.Add(1)
		defer running.Add(-1)
		if n > most.Load() {
			most.Store(n)
		}
		next <- r.Header.Get("beam-task-id")
		<-finish
	})
	site := "task_queue /q* q {\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, "queue q {\nworkers 1\n}", site)
	var ids []string
	for range 20 {
		ids = append(ids, accepted(t, g, "/q", "{}"))
	}
	for i, id := range ids {
		if got := <-next; got != id {
			t.Errorf("task %d begun is %s, which was not the next to arrive", i, got)
		}
		if i < 5 {
			g.Configure(fmt.Sprintf("queue q {\nworkers 1\nattempts %d\n}", 2+i), site)
			if err := g.Reload(); err != nil {
				t.Fatal(err)
			}
		}
		finish <- struct{}{}
	}
	if most.Load() != 1 {
		t.Errorf("%d tasks ran at once", most.Load())
	}
	reaches(t, g, "/q", ids[len(ids)-1], task.Done)
}

func TestQueueRunsAsManyTasksAsWorkers(t *testing.T) {
	t.Parallel()
	var running, most atomic.Int32
	full, finish := make(chan struct{}, 100), make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == 5 {
			full <- struct{}{}
		}
		<-finish
	})
	g := gatewaytest.Start(t, "queue q {\nworkers 5\n}", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	var last string
	for range 30 {
		last = accepted(t, g, "/q", "{}")
	}
	<-full
	if doc, err := document(g, "/q", last); err != nil || doc.State != task.Queued {
		t.Errorf("the last task is %+v: %v", doc, err)
	}
	close(finish)
	reaches(t, g, "/q", last, task.Done)
	if most.Load() != 5 {
		t.Errorf("%d tasks ran at once", most.Load())
	}
}

func TestSiteOfTwoServersHasOneQueue(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {})
	second := freeaddr.New(t)
	block := "task_queue /q* q {\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, "", block+"\n}\nhttp://"+second+" {\n"+block)
	id := accepted(t, g, "/q", "{}")
	resp, text, err := gatewaytest.Send(http.MethodPost, "http://"+second+"/q", nil, "Prefer", "wait=60")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("the second server: %v %s", err, text)
	}
	reaches(t, g, "/q", id, task.Done)
	reaches(t, g, "/q", resp.Header.Get("beam-task-id"), task.Done)
}
