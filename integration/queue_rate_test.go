package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/pace"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestQueueRateSpreadsStarts(t *testing.T) {
	t.Parallel()
	const interval, tasks = 100 * time.Millisecond, 12
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {})
	g := gatewaytest.Start(t, "queue q {\nrate 100/10s\n}", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	var ids []string
	for range tasks {
		ids = append(ids, accepted(t, g, "/q", "{}"))
	}
	starts := startsOf(t, g, ids)
	// The gateway's own times: however slow the machine is, they are never closer.
	for i, first := range starts {
		for j, later := range starts[i+1:] {
			if least := time.Duration(j+1)*interval - pace.Slack; later.Sub(first) < least {
				t.Errorf("the starts %d and %d are %v apart, want %v at least", i, i+j+1, later.Sub(first), least)
			}
		}
	}
}

// startsOf waits until tasks are done and returns when they were started, in order.
func startsOf(t *testing.T, g *gatewaytest.Gateway, ids []string) (starts []time.Time) {
	t.Helper()
	for _, id := range ids {
		starts = append(starts, reaches(t, g, "/q", id, task.Done).StartedAt)
	}
	slices.SortFunc(starts, time.Time.Compare)
	return starts
}

func TestQueueRateHoldsTasksAcrossReloads(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {})
	site := "task_queue /q* q {\nreverse_proxy " + app + "\n}\ntask_queue /other* other {\nreverse_proxy " + app + "\n}"
	g := gatewaytest.Start(t, "queue q {\nrate 1/1h\n}", site)
	reaches(t, g, "/q", accepted(t, g, "/q", "{}"), task.Done)
	second := accepted(t, g, "/q", "{}")
	heldBack := func() {
		t.Helper()
		g.Eventually("the API says that the rate holds tasks back", func() error {
			_, body, err := gatewaytest.Send(http.MethodGet, "http://"+g.Admin+"/callback/queues", nil)
			if err != nil {
				return err
			}
			var queues []struct {
				Name        string `json:"name"`
				Rate        string `json:"rate"`
				RateLimited bool   `json:"rate_limited"`
			}
			if err := json.Unmarshal([]byte(body), &queues); err != nil {
				return err
			}
			for _, q := range queues {
				if q.RateLimited != (q.Name == "q") || q.RateLimited && q.Rate != "1/1h" {
					return fmt.Errorf("%s", body)
				}
			}
			return nil
		})
	}
	heldBack()
	reload := func(options string) {
		t.Helper()
		g.Configure(options, site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	reload("retention 25h\nqueue q {\nrate 1/1h\n}")
	reaches(t, g, "/other", accepted(t, g, "/other", "{}"), task.Done) // the new workers run
	heldBack()
	if doc, err := document(g, "/q", second); err != nil || doc.State != task.Queued {
		t.Errorf("after the reload the task is %s, %v", doc.State, err)
	}
	c := runCaddy(t, t.TempDir(), "callback", "queues", "--address", g.Admin)
	if c.wantCode(t, 0); !strings.Contains(c.stdout, "waiting for the rate limit") {
		t.Errorf("the command prints %s", c.stdout)
	}
	reload("queue q {\nrate 100/1s\n}") // counts from the last start
	reaches(t, g, "/q", second, task.Done)
}
