package integration

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestEngineChangeDrainsOldStore(t *testing.T) {
	t.Parallel()
	working, release := make(chan struct{}), make(chan struct{})
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			close(working)
			<-release
		}
	})
	rcv, answer := failing(t, http.StatusInternalServerError)
	site := "callback\nreverse_proxy " + app
	options := gatewaytest.Delivering("retry 1h")
	g := gatewaytest.Start(t, options, site)
	left := g.Task(rcv.URL)
	g.Attempted(left, 1)
	rcv.Next(t)
	answer.Store(http.StatusOK)
	done := make(chan string, 1)
	go func() {
		resp, _, err := gatewaytest.Send(http.MethodPost, g.URL("/long"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)), "Content-Type", "application/json")
		if err != nil {
			t.Error(err)
			done <- ""
			return
		}
		done <- resp.Header.Get("beam-task-id")
	}()
	<-working

	g.Configure("engine sqlite "+filepath.Join(g.Dir, "other")+"\n"+options, site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	fresh := g.Task(rcv.URL) // in the new store, while the old one is in use
	if c := rcv.Next(t); c.TaskID() != fresh {
		t.Errorf("the callback is of %s, want %s", c.TaskID(), fresh)
	}
	close(release)
	if id := <-done; id == "" || id == fresh {
		t.Errorf("the task that was in flight is %q", id)
	}
	logs(g, "tasks are left in a store that is no longer used")

	// With the old store again, its tasks continue.
	g.Configure(options, site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	c := rcv.Next(t) // of the task that was in flight, because its verdict was stored
	if c.TaskID() == fresh || c.TaskID() == left || c.Status() != "COMPLETE" {
		t.Errorf("the callback is %v", c.Header)
	}
	adminAPI(t, g).inState(left, task.Delivering)
}

func TestReloadReopensClosingStore(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	site := gatewaytest.ExampleSite(t)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, site)
	for i := range 6 {
		options := gatewaytest.ToLocal
		if i%2 == 0 {
			options = fmt.Sprintf("engine sqlite %s\n%s", filepath.Join(g.Dir, "other"), options)
		}
		g.Configure(options, site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
		id := g.Task(rcv.URL)
		if c := rcv.Next(t); c.TaskID() != id {
			t.Errorf("the callback is of %s, want %s", c.TaskID(), id)
		}
	}
}
