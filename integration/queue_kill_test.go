package integration

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// killTasks returns the number of tasks for a queue whose gateway is killed.
// CALLBACK_KILL_TASKS overrides it, for longer runs than those of CI.
func killTasks(t *testing.T) int {
	if s := os.Getenv("CALLBACK_KILL_TASKS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return gatewaytest.Fewer(2000)
}

// starts counts in the app how often each task was started, and records the tasks of each
// idempotency key.
type starts struct {
	mu    sync.Mutex
	tasks map[string]int
	keys  map[string]map[string]bool
}

func newStarts() *starts {
	return &starts{tasks: make(map[string]int), keys: make(map[string]map[string]bool)}
}

func (s *starts) count(r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, key := r.Header.Get("beam-task-id"), r.Header.Get("Idempotency-Key")
	s.tasks[id]++
	if key == "" {
		return
	}
	if s.keys[key] == nil {
		s.keys[key] = make(map[string]bool)
	}
	s.keys[key][id] = true
}

// sendUntilAccepted sends a task, while the gateway is killed and restarted, until it is
// accepted. It returns the task's ID.
func sendUntilAccepted(t *testing.T, client *http.Client, url, body string, header ...string) string {
	for t.Context().Err() == nil {
		req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return ""
		}
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body) // the gateway may be killed here too
			resp.Body.Close()
			if resp.StatusCode == http.StatusAccepted {
				return resp.Header.Get("beam-task-id")
			}
			if resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("the queue answered %s", resp.Status)
			}
		}
		gatewaytest.Pause(10 * time.Millisecond)
	}
	return ""
}

func TestKilledGatewayKeepsQueue(t *testing.T) {
	t.Parallel()
	const attempts, writers = 3, 16
	begun := newStarts()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		begun.count(r)
		gatewaytest.Pause(rand.N(20 * time.Millisecond))
		if rand.N(20) == 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal+fmt.Sprintf("\nqueue q {\nworkers 16\nattempts %d\n}", attempts),
		"callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}")
	l := gatewaytest.NewLedger(rcv, t.Context().Done())

	total := killTasks(t)
	var next atomic.Int64
	var sending sync.WaitGroup
	for range writers {
		sending.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			body := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)
			for n := next.Add(1); n <= int64(total); n = next.Add(1) {
				var header []string
				if n%2 == 0 {
					header = []string{"Idempotency-Key", fmt.Sprint(n)}
				}
				l.Accept(sendUntilAccepted(t, client, g.URL("/q"), body, header...))
				gatewaytest.Pause(rand.N(20 * time.Millisecond))
			}
		})
	}
	for range 5 {
		gatewaytest.Pause(200*time.Millisecond + rand.N(600*time.Millisecond))
		g.Kill()
		g.Start()
	}
	sending.Wait()
	l.Drain(t)

	begun.mu.Lock()
	defer begun.mu.Unlock()
	for id, n := range begun.tasks {
		if n > attempts {
			t.Errorf("task %s was started %d times", id, n)
		}
	}
	for key, ids := range begun.keys {
		if len(ids) != 1 {
			t.Errorf("the key %s has begun %d tasks", key, len(ids))
		}
	}
	if len(begun.keys) != total/2 {
		t.Errorf("%d keys of %d have started a task", len(begun.keys), total/2)
	}
	for _, id := range l.Accepted() {
		if doc, err := document(g, "/q", id); err != nil || doc.State != task.Done && doc.State != task.Delivering {
			t.Errorf("task %s is %+v: %v", id, doc, err)
		}
	}
	t.Logf("over 5 kills: %+v", l.Tally())
}

// A gateway that is killed between storing a key and its task would leave a key without a
// task. Many clients that are cut off and retry would find it.
func TestIdempotencyKeySurvivesKill(t *testing.T) {
	t.Parallel()
	begun := newStarts()
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) { begun.count(r) })
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}")
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	const rounds, clients = 4, 64
	for round := range rounds {
		key := fmt.Sprint("k", round)
		body := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)
		ids := make(chan string, clients)
		for range clients {
			go func() {
				client := &http.Client{Transport: &http.Transport{}}
				defer client.CloseIdleConnections()
				ids <- sendUntilAccepted(t, client, g.URL("/q"), body, "Idempotency-Key", key)
			}()
		}
		gatewaytest.Pause(rand.N(30 * time.Millisecond))
		g.Kill()
		g.Start()
		first := <-ids
		for range clients - 1 {
			if id := <-ids; id != first || id == "" {
				t.Errorf("the key %s has the tasks %q and %q", key, first, id)
			}
		}
		l.Accept(first)
	}
	// Requests that were cut off have FAILED callbacks, which the test ignores.
	l.Drain(t)
	begun.mu.Lock()
	defer begun.mu.Unlock()
	for key, ids := range begun.keys {
		if len(ids) != 1 {
			t.Errorf("the key %s has begun %d tasks", key, len(ids))
		}
	}
}
