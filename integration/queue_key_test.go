package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func TestConcurrentRequestsWithOneIdempotencyKey(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"small body": 100, "large body": 4 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := make(chan string, 100)
			app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				got <- r.Header.Get("beam-task-id") + " " + hashOf(body)
			})
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_queue /q* q {\ncallback "+rcv.URL+" {\nmax_request 64MiB\n}\nreverse_proxy "+app+"\n}")
			body := bytes.Repeat([]byte("x"), size)
			ids := make(chan string, 8)
			for range 8 {
				go func() {
					resp, text, err := gatewaytest.Send(http.MethodPost, g.URL("/q"), bytes.NewReader(body), "Idempotency-Key", "k")
					if err != nil || resp.StatusCode != http.StatusAccepted {
						t.Errorf("%v %s", err, text)
						ids <- ""
						return
					}
					if want := fmt.Sprintf("{\"task_id\":%q}\n", resp.Header.Get("beam-task-id")); text != want {
						t.Errorf("the header names %s and the body %s", want, text)
					}
					ids <- resp.Header.Get("beam-task-id")
				}()
			}
			id := <-ids
			for range 7 {
				if other := <-ids; other != id {
					t.Errorf("the key has the tasks %q and %q", other, id)
				}
			}
			if c := rcv.Next(t); c.TaskID() != id || c.Status() != "COMPLETE" {
				t.Errorf("the callback is %v %s", c.Header, c.Body)
			}
			reaches(t, g, "/q", id, task.Done)
			if run := <-got; run != id+" "+hashOf(body) || len(got) != 0 {
				t.Errorf("the app got %s and %d more", run, len(got))
			}
		})
	}
}

func TestIdempotencyKeyOutlivesTask(t *testing.T) {
	t.Parallel()
	runs := make(chan string, 100)
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) { runs <- r.Header.Get("beam-task-id") })
	g := gatewaytest.Start(t, "retention 1s", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", "{}", "Idempotency-Key", "k")
	gatewaytest.Eventually(t, "the task is removed", func() error {
		if _, err := document(g, "/q", id); err == nil {
			return fmt.Errorf("it is known")
		}
		return nil
	})
	g.Kill()
	g.Start()
	if again := accepted(t, g, "/q", "{}", "Idempotency-Key", "k"); again != id {
		t.Errorf("the key has the task %s, want %s", again, id)
	}
	if resp, text := g.Do(http.MethodPost, "/q", `{"n":2}`, "Idempotency-Key", "k"); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("the key with another body: %s %s", resp.Status, text)
	}
	if run := <-runs; run != id || len(runs) != 0 {
		t.Errorf("task %s ran, and %d more", run, len(runs))
	}
}

func TestIdempotencyKeyWithCallback(t *testing.T) {
	t.Parallel()
	runs := make(chan string, 100)
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) { runs <- r.Header.Get("beam-task-id") })
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_queue /q* q {\ncallback "+rcv.URL+"\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", "{}", "Idempotency-Key", "k")
	if again := accepted(t, g, "/q", "{}", "Idempotency-Key", "k"); again != id {
		t.Errorf("the key has the tasks %s and %s", id, again)
	}
	if c := rcv.Next(t); c.TaskID() != id {
		t.Errorf("the callback is %v", c.Header)
	}
	resp, text := g.Do(http.MethodPost, "/q", `{"n":2}`, "Idempotency-Key", "k")
	if resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("the key with another body: %s %s", resp.Status, text)
	}
	reaches(t, g, "/q", id, task.Done)
	if run := <-runs; run != id || len(runs) != 0 || len(rcv.Got) != 0 {
		t.Errorf("task %s ran, and %d others with %d callbacks", run, len(runs), len(rcv.Got))
	}
}
