package browser

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const (
	manyQueued = 200_000
	manyDead   = 1_200 // more than the API changes in one request
)

// store puts tasks into a gateway's store before it starts.
type store struct {
	t      *testing.T
	engine engine.Engine
	number atomic.Int64
}

func openStore(t *testing.T, g *gatewaytest.Gateway) *store {
	t.Helper()
	return &store{t: t, engine: g.OpenStore()}
}

// record returns the record of a new task.
func (s *store) record(host string) *task.Record {
	n := s.number.Add(1)
	return &task.Record{
		Task:     task.Task{ID: fmt.Sprintf("00000000-0000-4000-8000-%012x", n), CreatedAt: time.Now().UTC(), CallbackHost: host},
		Callback: &task.Callback{URL: "https://" + host + "/", TaskHeader: "beam-task-id", StatusHeader: "x-beam-task-status"},
	}
}

// each does something n times, several at once.
func (s *store) each(n int, do func(context.Context) error) {
	s.t.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var workers sync.WaitGroup
	for range 64 {
		workers.Go(func() {
			for left.Add(-1) >= 0 {
				if err := do(s.t.Context()); err != nil {
					s.t.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// queued stores n tasks of a queue.
func (s *store) queued(n int, host string) {
	s.t.Helper()
	s.each(n, func(ctx context.Context) error {
		rec := s.record(host)
		rec.Queue, rec.Request = "many", &task.Request{Method: http.MethodPost, URI: "/many", Proto: "HTTP/1.1", Host: "many.example"}
		rec.Timeout = time.Hour
		_, _, err := s.engine.Enqueue(ctx, rec, nil, engine.EnqueueOptions{})
		return err
	})
}

// dead stores n dead tasks.
func (s *store) dead(n int) {
	s.t.Helper()
	s.each(n, func(ctx context.Context) error {
		rec := s.record("c.example:443")
		lease, err := s.engine.Claim(ctx, rec)
		if err != nil {
			return err
		}
		rec.Status, rec.FinishedAt = task.Complete, time.Now().UTC()
		return lease.Settle(ctx, rec, nil)
	})
	for ended := 0; ended < n; {
		deliveries, err := s.engine.Take(s.t.Context(), "c.example:443", 256)
		if err != nil || len(deliveries) == 0 {
			s.t.Fatalf("%d of %d deliveries taken: %v", ended, n, err)
		}
		for _, delivery := range deliveries {
			delivery.Record().AddAttempt(task.Attempt{At: time.Now().UTC(), StatusCode: 410, Response: "gone"})
			if err := delivery.Dead(s.t.Context()); err != nil {
				s.t.Fatal(err)
			}
		}
		ended += len(deliveries)
	}
}

func TestDashboardHandles200000Tasks(t *testing.T) {
	t.Parallel()
	held, release := context.WithCancel(context.Background())
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { <-held.Done() })
	t.Cleanup(release)
	g := gatewaytest.New(t, "queue many {\n\tworkers 1\n}", `
	handle /ops* {
		task_dashboard
	}
	handle {
		task_queue many {
			reverse_proxy `+app+`
		}
	}`)
	s := openStore(t, g)
	const near = 15_000 // tasks that are newer than the searched ones
	s.dead(manyDead)
	s.queued(1, "first.example") // the app does not answer it
	s.queued(1, "deep.example")
	s.queued(manyQueued-2-3-near, "c.example")
	s.queued(3, "rare.example")
	s.queued(near, "c.example")
	g.CloseStore(s.engine)
	g.Start()

	p := newPage(t, desktop)
	p.open(g.URL("/ops"))
	p.figure("Waiting", "199,999")
	p.figure("Dead", "1,200")
	p.fits("an overview of 200,000 tasks")
	p.open(g.URL("/ops") + "#/tasks")
	p.is("all are counted", `document.querySelector("#states .badge").textContent === "201,200"`)
	p.rows(50)
	p.click("#pages a", "Next page")
	p.is("there is a next page", `location.hash.includes("after=")`)
	p.rows(50)

	p.open(g.URL("/ops") + "#/tasks?state=queued&host=rare.example")
	p.rows(3)
	p.open(g.URL("/ops") + "#/tasks?state=queued&host=deep.example")
	p.rows(1) // found through an index, although many tasks are newer

	p.fill("#search", fmt.Sprintf("00000000-0000-4000-8000-%012x\r", manyDead+2)) // the deep one
	p.shows("deep.example")

	p.click("#views a", "Queues")
	p.shows("199,999")
	p.open(g.URL("/ops") + "#/tasks?state=dead")
	p.rows(50)
	p.is("the reason is shown", `document.querySelector("#list .reason").textContent.includes("410")`)
	p.click("button", "Select all that match")
	p.click("#bulk button", "Delete…")
	p.shows("Delete 1,200 tasks?") // counted by a dry run
	p.click("#ask-yes", "Delete: 1,200")
	p.shows("1,200 tasks deleted.")
	p.shows("No task matches")
	p.is("deleted tasks are not counted", `document.querySelector("#states .badge").textContent === "200,000"`)
	p.fits("200,000 tasks")
}
