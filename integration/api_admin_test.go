package integration

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestDashboardWorksBelowAnyPath(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", `
	handle_path /stripped/* {
		task_dashboard
	}
	handle /api/deep/* {
		task_dashboard
	}
	task_dashboard /ops*
	callback
	respond ok`)
	for _, mount := range []string{"/ops/", "/stripped/", "/api/deep/"} {
		resp, text := g.Do(http.MethodGet, mount, "", "Accept", "text/html")
		if resp.StatusCode != http.StatusOK || !strings.Contains(text, "<html") || resp.Header.Get("Content-Security-Policy") == "" {
			t.Errorf("%s: %s %.200s", mount, resp.Status, text)
		}
		a := apiAt(t, g.URL(mount+"api/"))
		a.ask(http.MethodGet, "tasks", http.StatusOK, nil)
		a.ask(http.MethodGet, "overview", http.StatusOK, nil)
		a.ask(http.MethodGet, "nothing", http.StatusNotFound, nil)
		a.ask(http.MethodPost, "tasks/delete?state=done", http.StatusOK, nil)
	}
	if resp, text := g.Do(http.MethodGet, "/", ""); text != "ok" {
		t.Errorf("beside it: %s %s", resp.Status, text)
	}
}

func TestCrossSiteRequestsAreRefused(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", "task_dashboard /ops/*\nrespond ok")
	for _, base := range []string{g.URL("/ops/api/"), "http://" + g.Admin + "/callback/"} {
		for _, header := range [][]string{
			{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors"},
			{"Origin", "https://evil.example"},
			{"Origin", "null", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"},
		} {
			resp, text, err := gatewaytest.Send(http.MethodPost, base+"tasks/delete?state=done", nil, header...)
			if err != nil || resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusBadRequest {
				t.Errorf("%s with %v: %v %v %s", base, header, err, resp, text)
			}
		}
	}
	// A DNS name that resolves to this machine is refused too.
	req, err := http.NewRequest(http.MethodGet, "http://"+g.Admin+"/callback/tasks", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "rebound.example"
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("by another name the admin endpoint answers %s", resp.Status)
	}
}

// watched opens a stream of overviews and waits for the first. The returned channel
// gets the error that ends the stream.
func watched(t *testing.T, base string) <-chan error {
	t.Helper()
	resp, err := http.Get(base + "events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	first, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		n := 0
		for lines.Scan() {
			if lines.Text() == "event: overview" {
				if n++; n == 1 {
					close(first)
				}
			}
		}
		ended <- lines.Err()
	}()
	select {
	case <-first:
	case err := <-ended:
		t.Fatalf("%s: got no overview: %v", base, err)
	}
	return ended
}

func TestReloadEndsEventStreams(t *testing.T) {
	t.Parallel()
	site := "task_dashboard /ops/*\ntask_queue /q* q {\nrespond done\n}\nrespond ok"
	g := gatewaytest.Start(t, "queue q {\nworkers 3\n}", site)
	a := adminAPI(t, g)
	workers := func() int {
		var queues []struct {
			Workers int `json:"workers"`
		}
		a.ask(http.MethodGet, "queues", http.StatusOK, &queues)
		if len(queues) != 1 {
			t.Fatalf("the queues are %v", queues)
		}
		return queues[0].Workers
	}
	if got := workers(); got != 3 {
		t.Fatalf("the queue has %d workers", got)
	}
	streams := []<-chan error{watched(t, g.URL("/ops/api/")), watched(t, a.base)}
	g.Configure("queue q {\nworkers 5\n}", site)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	for _, ended := range streams {
		if err := <-ended; err != nil {
			t.Errorf("a stream ended with %v", err)
		}
	}
	if got := workers(); got != 5 {
		t.Errorf("after the reload the queue has %d workers", got)
	}
	// A configuration that does not start changes nothing.
	g.Configure("queue q {\nworkers 7\n}", site+"\ntask_queue /p* q {\nrespond other\n}")
	if err := g.Reload(); err == nil {
		t.Fatal("a queue that is defined twice loads")
	}
	if got := workers(); got != 5 {
		t.Errorf("after the failed reload the queue has %d workers", got)
	}
	watched(t, a.base)
	if code := g.Stop(); code != 0 {
		t.Errorf("with an open stream the gateway exits with code %d", code)
	}
}

func TestAdminEndpointWithoutApp(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", "callback\nrespond ok")
	a := adminAPI(t, g)
	a.ask(http.MethodGet, "tasks", http.StatusOK, nil)
	resp, text, err := gatewaytest.Send(http.MethodPost, "http://"+g.Admin+"/load",
		strings.NewReader(fmt.Sprintf(`{"admin":{"listen":%q}}`, g.Admin)), "Content-Type", "application/json")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, text, err)
	}
	gatewaytest.Eventually(t, "the new admin endpoint answers", func() error {
		return a.try(http.MethodGet, "tasks", http.StatusServiceUnavailable, nil)
	})
	a.ask(http.MethodGet, "schedules", http.StatusServiceUnavailable, nil)
	a.ask(http.MethodGet, "tasks/x/y", http.StatusNotFound, nil)
}

func TestAPIListsTasksOfAllGateways(t *testing.T) {
	t.Parallel()
	cluster := gatewaytest.StartCluster(t, 1)
	rcv, answer := failing(t, http.StatusGone)
	options := cluster.Options()
	nodes := []*gatewaytest.Gateway{
		gatewaytest.Start(t, options, gatewaytest.ExampleSite(t)), gatewaytest.Start(t, options, gatewaytest.ExampleSite(t)),
	}
	ids := make(map[string]bool)
	for i := range 10 {
		ids[nodes[i%2].Task(rcv.URL)] = true
		rcv.Next(t)
	}
	for _, g := range nodes {
		a := adminAPI(t, g)
		gatewaytest.Eventually(t, "all are dead", func() error {
			if got := a.all("state=dead&limit=3"); len(got) != len(ids) {
				return fmt.Errorf("%d are", len(got))
			}
			return nil
		})
	}
	answer.Store(http.StatusOK)
	o := adminAPI(t, nodes[0]).onMany("redeliver", "state=dead")
	if o.Changed != len(ids) {
		t.Errorf("the overview is %+v", o)
	}
	for id := range ids {
		adminAPI(t, nodes[1]).inState(id, task.Done)
	}
}
