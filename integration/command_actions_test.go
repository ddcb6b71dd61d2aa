package integration

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestRedeliverToAnotherURL(t *testing.T) {
	t.Parallel()
	gone, _ := failing(t, http.StatusGone)
	other := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, gatewaytest.ExampleSite(t))
	a := adminAPI(t, g)
	id := g.Task(gone.URL)
	first := gone.Next(t)
	a.inState(id, task.Dead)

	c := onTasks(t, g, "redeliver", "--all", "--url", other.URL)
	if c.code != 2 || !strings.Contains(c.stderr, "--url") {
		t.Errorf("--url with --all: exit code %d, stderr %q", c.code, c.stderr)
	}
	c = onTasks(t, g, "redeliver", id, "--url", "ftp://c.example/")
	if c.code != 1 || !strings.Contains(c.stderr, "not an http or https URL") {
		t.Errorf("--url with an FTP URL: exit code %d, stderr %q", c.code, c.stderr)
	}
	a.inState(id, task.Dead)

	onTasks(t, g, "redeliver", id, "--url", other.URL).wantCode(t, 0)
	got := other.Next(t)
	if got.TaskID() != id || string(got.Body) != string(first.Body) {
		t.Errorf("the other receiver got task %s with body %q, not task %s with %q", got.TaskID(), got.Body, id, first.Body)
	}
	a.inState(id, task.Done)
}

func TestSchedulesRunQueuesTaskNow(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "queue train {\nschedule @every 24h {\nuri /q\n}\n}", "task_queue /q* train {\nrespond ok\n}")
	a := adminAPI(t, g)
	var schedule struct {
		ID string `json:"id"`
	}
	c := onTasks(t, g, "schedules", "--json")
	if err := json.Unmarshal([]byte(c.stdout), &schedule); err != nil || schedule.ID == "" {
		t.Fatalf("schedules --json prints %q: %v", c.stdout, err)
	}

	c = onTasks(t, g, "schedules", "run", schedule.ID)
	c.wantCode(t, 0)
	a.inState(strings.TrimSuffix(c.stdout, "\n"), task.Done)

	c = onTasks(t, g, "schedules", "run", schedule.ID, "--json")
	c.wantCode(t, 0)
	var queued task.Task
	if err := json.Unmarshal([]byte(c.stdout), &queued); err != nil {
		t.Fatalf("schedules run --json prints %q: %v", c.stdout, err)
	}
	a.inState(queued.ID, task.Done)

	c = onTasks(t, g, "schedules", "run", "nonsense")
	if c.code != 1 || !strings.Contains(c.stderr, "no such schedule") {
		t.Errorf("an unknown schedule: exit code %d, stderr %q", c.code, c.stderr)
	}
}
