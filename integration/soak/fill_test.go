package soak

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// waiting returns how many tasks fill the queue: CALLBACK_SOAK_TASKS, or a million in a
// soak, or a few among the other tests.
func waiting(t *testing.T) int {
	text := os.Getenv("CALLBACK_SOAK_TASKS")
	if text == "" {
		if os.Getenv("CALLBACK_SOAK") == "" {
			return 2_000
		}
		return 1_000_000
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("CALLBACK_SOAK_TASKS is %q; expected a number of tasks", text)
	}
	return n
}

// TestFullQueueDrainsAndItsFileIsReused fills a queue, drains it, and fills and drains it
// again. The second time, the database must reuse the pages of the first.
func TestFullQueueDrainsAndItsFileIsReused(t *testing.T) {
	n := waiting(t)
	var open atomic.Pointer[chan struct{}] // closed when the endpoint may answer
	shut := func() (reopen func()) {
		gate := make(chan struct{})
		open.Store(&gate)
		return func() { close(gate) }
	}
	reopen := shut()
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-*open.Load():
		case <-r.Context().Done():
		}
	})
	options := fmt.Sprintf("retention 24h 1000\nqueue q {\nworkers 32\nmax_queued %d\n}\n", 2*n)
	g := gatewaytest.New(t, options, "task_queue q {\nreverse_proxy "+app+"\n}")
	g.Edit("level DEBUG", "level ERROR")
	g.Start()
	l := &load{gateway: g}

	report := func(when string) *sample {
		s := look(l)
		t.Logf("%-22s %8.0f unfinished, %6.0f MiB of memory, %6.0f MiB of store", when, s.unfinished, s.memory, s.store)
		return s
	}
	before := report("before")
	var full, drained [2]*sample
	for i := range full {
		submit(t, g, n)
		full[i] = report("full")
		reopen()
		drain(t, g, l)
		drained[i] = report("drained")
		reopen = shut()
	}
	if code := g.Stop(); code != 0 {
		t.Errorf("the gateway exited with %d", code)
	}
	if n < 100_000 {
		return // caches and the log of the database take more than the tasks
	}
	if most := full[0].store*1.15 + 16; full[1].store > most {
		t.Errorf("the store grew from %.0f to %.0f MiB when it was filled again", full[0].store, full[1].store)
	}
	if spare := float64(gatewaytest.Growth(128)); drained[1].memory > before.memory+spare {
		t.Errorf("memory grew from %.0f to %.0f MiB", before.memory, drained[1].memory)
	}
}

// submit submits tasks from several clients.
func submit(t *testing.T, g *gatewaytest.Gateway, n int) {
	t.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for left.Add(-1) >= 0 {
				resp, err := client.Post(g.URL("/"), "text/plain", strings.NewReader(strings.Repeat("x", 200)))
				if err != nil {
					t.Error(err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusAccepted {
					t.Errorf("the answer is %s", resp.Status)
					return
				}
			}
		})
	}
	group.Wait()
}

// drain waits until all tasks have finished, as long as their number falls.
func drain(t *testing.T, g *gatewaytest.Gateway, l *load) {
	t.Helper()
	least := look(l).unfinished
	for least > 0 {
		g.Eventually("the queue drains", func() error {
			if s := look(l); s.unfinished < least {
				least = s.unfinished
				return nil
			}
			return fmt.Errorf("%.0f tasks are unfinished", least)
		})
	}
}
