package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// leaveKey stores a key as a gateway does that is killed before it stores the
// task.
func leaveKey(t *testing.T, g *gatewaytest.Gateway, queue, key string, body []byte) (id string) {
	t.Helper()
	e, err := engine.Open(t.Context(), engine.Config{
		Store: filepath.Join(g.Dir, "store"), Sync: 2 * time.Second, Retention: 24 * time.Hour, RetentionCount: 100_000,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	id = uuid.NewString()
	scoped := key + "\x00POST\x00/" + queue + "\x00" // nobody has authenticated
	_, mine, err := e.ClaimKey(t.Context(), queue, hashOf([]byte(scoped)), engine.Key{TaskID: id, Body: hashOf(body)})
	if err != nil || !mine {
		t.Fatalf("the key is not ours: %v", err)
	}
	return id
}

func TestAKeyWithoutItsTaskStartsIt(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"a body in the message": 100, "a body beside it": 4 << 20} {
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
			g := gatewaytest.New(t, gatewaytest.ToLocal, "callback "+rcv.URL+" {\nmax_request 64MiB\n}\ntask_queue /q* q {\nreverse_proxy "+app+"\n}")
			body := bytes.Repeat([]byte("x"), size)
			id := leaveKey(t, g, "q", "k", body)
			g.Start()
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
			for range 8 {
				if got := <-ids; got != id {
					t.Errorf("the key has the task %q, not %s", got, id)
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

func TestAKeyLivesAsLongAsItsTask(t *testing.T) {
	t.Parallel()
	runs := make(chan string, 100)
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) { runs <- r.Header.Get("beam-task-id") })
	g := gatewaytest.Start(t, "retention 2s", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", "{}", "Idempotency-Key", "k")
	reaches(t, g, "/q", id, task.Done)
	gatewaytest.Eventually(t, "the task is forgotten", func() error {
		if _, err := document(g, "/q", id); err == nil {
			return fmt.Errorf("it is known")
		}
		return nil
	})
	again := accepted(t, g, "/q", "{}", "Idempotency-Key", "k")
	<-runs
	select {
	case run := <-runs:
		if run != again {
			t.Errorf("task %s runs, not %s", run, again)
		}
	case <-time.After(gatewaytest.Patience):
		t.Error("the key of a forgotten task starts none")
	}
}

func TestACallbackAndAKeyMakeOneTask(t *testing.T) {
	t.Parallel()
	runs := make(chan string, 100)
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) { runs <- r.Header.Get("beam-task-id") })
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback "+rcv.URL+"\ntask_queue /q* q {\nreverse_proxy "+app+"\n}")
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
