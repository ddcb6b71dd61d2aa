package integration

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestQueueMetrics(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { <-finish })
	g := gatewaytest.Start(t, "queue q {\nworkers 1\n}", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	reaches(t, g, "/q", accepted(t, g, "/q", "{}"), task.Running)
	last := accepted(t, g, "/q", "{}")
	scrape(t, g, `caddy_callback_tasks{state="running"} 1`, `caddy_callback_tasks{state="queued"} 1`,
		`caddy_callback_queued_tasks{queue="q"} 1`, `caddy_callback_queue_starts_total{queue="q"} 1`)
	close(finish)
	reaches(t, g, "/q", last, task.Done)
	scrape(t, g, `caddy_callback_tasks{state="done"} 2`, `caddy_callback_queued_tasks{queue="q"} 0`,
		`caddy_callback_queue_wait_seconds_count{queue="q"} 2`, `caddy_callback_queue_run_seconds_count{queue="q"} 2`,
		`caddy_callback_queue_starts_total{queue="q"} 2`, `caddy_callback_tasks_total{route="q",status="COMPLETE"} 2`)
	gatewaytest.Eventually(t, "both runs are logged", func() error {
		if strings.Count(g.Log.String(), `"msg":"task run"`) != 2 {
			return errNotThere
		}
		return nil
	})
}

var errNotThere = errors.New("it is not there")

// scrape waits until the metrics contain all of the given lines.
func scrape(t *testing.T, g *gatewaytest.Gateway, lines ...string) {
	t.Helper()
	for _, line := range lines {
		gatewaytest.Eventually(t, line, func() error {
			_, text, err := gatewaytest.Send(http.MethodGet, "http://"+g.Admin+"/metrics", nil)
			if err == nil && !strings.Contains(text, line+"\n") {
				err = errNotThere
			}
			return err
		})
	}
}
