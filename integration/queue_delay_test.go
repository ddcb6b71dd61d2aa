package integration

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// appRequest is a task's request as the app received it.
type appRequest struct {
	at     time.Time
	id     string
	header http.Header
}

// newRecordingApp starts an app that records each request.
func newRecordingApp(t *testing.T) (app string, requests chan appRequest) {
	requests = make(chan appRequest, 1000)
	app = gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		requests <- appRequest{time.Now(), r.Header.Get("beam-task-id"), r.Header.Clone()}
	})
	return app, requests
}

func TestDelayedTaskSurvivesKill(t *testing.T) {
	t.Parallel()
	const delay = 30 * time.Second // the gateway is killed and asked before it ends
	for name, tt := range map[string]struct {
		value func(now time.Time) []string
		start func(t *testing.T, site string) (accepts, runs *gatewaytest.Gateway)
	}{
		"restart": {
			func(time.Time) []string { return []string{"Task-Delay", delay.String()} },
			func(t *testing.T, site string) (accepts, runs *gatewaytest.Gateway) {
				g := gatewaytest.Start(t, "", site)
				return g, g
			},
		},
		"another gateway of a cluster": {
			func(now time.Time) []string {
				return []string{"Task-Not-Before", now.Add(delay).UTC().Format(time.RFC3339Nano)}
			},
			func(t *testing.T, site string) (accepts, runs *gatewaytest.Gateway) {
				c := gatewaytest.StartCluster(t, 1)
				return gatewaytest.Start(t, c.Options(), site), gatewaytest.Start(t, c.Options(), site)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app, requests := newRecordingApp(t)
			accepts, runs := tt.start(t, "task_queue /q* q {\nreverse_proxy "+app+"\n}")
			sent := time.Now()
			id := accepted(t, accepts, "/q", "{}", append(tt.value(sent), "Task_Delay", "1h")...)
			doc, err := document(accepts, "/q", id)
			if err != nil || doc.State != task.Queued || doc.NextAttemptAt.Before(sent.Add(delay)) {
				t.Fatalf("the delayed task is %+v: %v", doc, err)
			}
			accepts.Kill()
			if runs == accepts {
				runs.Start()
			}
			after, err := document(runs, "/q", id)
			if err != nil || !after.NextAttemptAt.Equal(doc.NextAttemptAt) {
				t.Errorf("the delayed task became %+v: %v", after, err)
			}
			if other := accepted(t, runs, "/q", "{}"); other != (<-requests).id {
				t.Error("a task without a delay waits for the delayed one")
			}
			a := <-requests
			if a.id != id || a.at.Before(doc.NextAttemptAt) {
				t.Errorf("%s starts at %v", a.id, a.at)
			}
			for name := range a.header {
				if strings.HasPrefix(name, "Task") {
					t.Errorf("the app gets %s", name)
				}
			}
			if ended := reaches(t, runs, "/q", id, task.Done); ended.Status != task.Complete || !ended.NextAttemptAt.IsZero() {
				t.Errorf("the task ended as %+v", ended)
			}
		})
	}
}

func TestDelayedTaskCanBeCanceled(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_queue /q* q {\ncallback "+rcv.URL+"\nrespond yes\n}")
	id := accepted(t, g, "/q", "{}", "Task-Delay", "1h")
	scrape(t, g, `caddy_callback_queued_tasks{queue="q"} 1`, `caddy_callback_delayed_tasks{queue="q"} 1`)
	if status := cancel(g, "/q", id); status != http.StatusAccepted {
		t.Errorf("canceling: %d", status)
	}
	if c := rcv.Next(t); c.TaskID() != id || c.Status() != "FAILED" || c.Body != "error=canceled" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	if doc := reaches(t, g, "/q", id, task.Done); !doc.StartedAt.IsZero() || !doc.NextAttemptAt.IsZero() {
		t.Errorf("the task is %+v", doc)
	}
	scrape(t, g, `caddy_callback_queued_tasks{queue="q"} 0`, `caddy_callback_delayed_tasks{queue="q"} 0`)
}

func TestInvalidDelayIsRefused(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nqueue q {\nmax_delay 1h\n}", `
		task_queue /q* q {
			respond yes
		}
		handle /within* {
			callback `+rcv.URL+`
			handle {
				task_queue within {
					respond yes
				}
			}
		}`)
	for name, tt := range map[string]struct {
		path   string
		header []string
		named  string
	}{
		"over max_delay":           {"/q", []string{"Task-Delay", "61m"}, "task-delay"},
		"over the default":         {"/within", []string{"Task-Delay", "31d"}, "task-delay"},
		"not a duration":           {"/q", []string{"Task-Delay", "soon"}, "task-delay"},
		"not a time":               {"/q", []string{"Task-Not-Before", "tomorrow"}, "task-not-before"},
		"too far in the future":    {"/q", []string{"Task-Not-Before", "2999-01-01T00:00:00Z"}, "task-not-before"},
		"both":                     {"/q", []string{"Task-Delay", "1m", "Task-Not-Before", "2020-01-01T00:00:00Z"}, "task-delay"},
		"within a callback":        {"/within", []string{"Task-Delay", "-1m"}, "task-delay"},
		"bytes that are not UTF-8": {"/q", []string{"Task-Delay", "\xff\xfe"}, "task-delay"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, text := g.Do(http.MethodPost, tt.path, "{}", append([]string{"Content-Type", "application/json"}, tt.header...)...)
			var doc struct {
				Detail string `json:"detail"`
			}
			if err := json.Unmarshal([]byte(text), &doc); err != nil || resp.StatusCode != http.StatusBadRequest || !strings.HasPrefix(doc.Detail, tt.named+": ") {
				t.Errorf("it is answered %s %s", resp.Status, text)
			}
			if id := resp.Header.Get("beam-task-id"); id != "" {
				t.Errorf("the refusal names the task %s", id)
			}
		})
	}
	scrape(t, g, `caddy_callback_tasks{state="queued"} 0`, `caddy_callback_tasks{state="running"} 0`)
	if id := accepted(t, g, "/within", "{}", "Task-Delay", "2s"); rcv.Next(t).TaskID() != id {
		t.Error("the callback is of another task")
	}
}
