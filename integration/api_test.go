package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/web/openapitest"
)

// api is the API of a gateway.
type api struct {
	t    *testing.T
	base string
	doc  *openapitest.Document
}

// adminAPI is the API on the admin endpoint.
func adminAPI(t *testing.T, g *gatewaytest.Gateway) *api {
	t.Helper()
	return apiAt(t, "http://"+g.Admin+"/callback/")
}

// apiAt returns the API at a base URL. It loads the API's own document.
func apiAt(t *testing.T, base string) *api {
	t.Helper()
	_, text, err := gatewaytest.Send(http.MethodGet, base+"openapi.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapitest.Load([]byte(text))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return &api{t, base, doc}
}

// try sends a request, validates the response against the document, and decodes it.
func (a *api) try(method, path string, want int, into any) error {
	resp, text, err := gatewaytest.Send(method, a.base+path, nil)
	if err != nil {
		return err
	}
	if err := a.doc.Check(method, path, resp, []byte(text)); err != nil {
		a.t.Error(err)
	}
	if resp.StatusCode != want {
		return fmt.Errorf("%s %s: %s, want %d: %s", method, path, resp.Status, want, text)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal([]byte(text), into)
}

func (a *api) ask(method, path string, want int, into any) {
	a.t.Helper()
	if err := a.try(method, path, want, into); err != nil {
		a.t.Fatal(err)
	}
}

// page is a page of the API's list.
type page struct {
	Tasks   []task.Task `json:"tasks"`
	Next    string      `json:"next"`
	Scanned int         `json:"scanned"`
}

// all returns the IDs of all tasks that match a query, newest first.
func (a *api) all(query string) (ids []string) {
	a.t.Helper()
	for next := ""; ; {
		var p page
		a.ask(http.MethodGet, "tasks?"+query+"&after="+url.QueryEscape(next), http.StatusOK, &p)
		for _, doc := range p.Tasks {
			ids = append(ids, doc.ID)
		}
		if next = p.Next; next == "" {
			return ids
		}
	}
}

// inState waits until a task is in a state, and returns it.
func (a *api) inState(id string, state task.State) (doc task.Task) {
	a.t.Helper()
	gatewaytest.Eventually(a.t, fmt.Sprintf("task %s is %s", id, state), func() error {
		doc = task.Task{}
		if err := a.try(http.MethodGet, "tasks/"+id, http.StatusOK, &doc); err != nil {
			return err
		}
		if doc.State != state {
			return fmt.Errorf("it is %+v", doc)
		}
		return nil
	})
	return doc
}

// outcome is the API's response to an action on all matching tasks.
type outcome struct {
	Matched int    `json:"matched"`
	Changed int    `json:"changed"`
	Failed  int    `json:"failed"`
	Reason  string `json:"reason"`
	Next    string `json:"next"`
}

// onMany acts on all tasks that match a query. A request acts for a limited time, so
// that a slow store needs several.
func (a *api) onMany(action, query string) (total outcome) {
	a.t.Helper()
	for next := ""; ; next = total.Next {
		var part outcome
		a.ask(http.MethodPost, "tasks/"+action+"?"+query+"&after="+url.QueryEscape(next), http.StatusOK, &part)
		total.Matched, total.Changed, total.Failed = total.Matched+part.Matched, total.Changed+part.Changed, total.Failed+part.Failed
		total.Reason, total.Next = part.Reason, part.Next
		if total.Next == "" {
			return total
		}
	}
}

// failing starts a receiver that responds with a status that the test can change.
func failing(t *testing.T, status int) (*gatewaytest.Receiver, *atomic.Int64) {
	t.Helper()
	answer := new(atomic.Int64)
	answer.Store(int64(status))
	return gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(int(answer.Load()))
		_, _ = io.WriteString(w, hostileAnswer)
	}), answer
}

const hostileAnswer = "<script>alert(1)</script>\x1b[2J\u202e\xff"

func TestRedeliverDeadTasks(t *testing.T) {
	t.Parallel()
	rcv, answer := failing(t, http.StatusGone)
	g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+exampleKey), gatewaytest.ExampleSite(t))
	a := adminAPI(t, g)
	id := g.Task(rcv.URL)
	first := rcv.Next(t)
	a.inState(id, task.Dead)
	_, text, err := gatewaytest.Send(http.MethodGet, a.base+"tasks/"+id, nil)
	if err != nil || strings.ContainsAny(text, "<\x1b") || !strings.Contains(text, `\u003cscript`) {
		t.Errorf("the receiver's answer is %s: %v", text, err)
	}
	if got := a.all("state=dead"); !slices.Equal(got, []string{id}) {
		t.Errorf("the dead tasks are %v", got)
	}

	answer.Store(http.StatusOK)
	a.ask(http.MethodPost, "tasks/"+id+"/redeliver", http.StatusAccepted, nil)
	again := rcv.Next(t)
	for name, same := range map[string]bool{"webhook-id": true, "beam-task-id": true, "callback-attempt": true, "webhook-signature": false} {
		if was, is := first.Header.Get(name), again.Header.Get(name); was == "" || same && was != is {
			t.Errorf("%s was %q and is %q", name, was, is)
		}
	}
	if key := again.Header.Get("Idempotency-Key"); first.Header.Get("Idempotency-Key") != id || !strings.HasPrefix(key, id+"-") {
		t.Errorf("the idempotency key of task %s was %q and is %q", id, first.Header.Get("Idempotency-Key"), key)
	}
	if again.Body != first.Body {
		t.Errorf("the body was %q and is %q", first.Body, again.Body)
	}
	doc := a.inState(id, task.Done)
	if len(doc.Attempts) != 2 || doc.DeliveredAt.IsZero() {
		t.Errorf("it is %+v", doc)
	}
	a.ask(http.MethodPost, "tasks/"+id+"/cancel", http.StatusConflict, nil)
	// The result is kept, so the task can be redelivered again.
	a.ask(http.MethodPost, "tasks/"+id+"/redeliver", http.StatusAccepted, nil)
	rcv.Next(t)
	a.inState(id, task.Done)
	a.ask(http.MethodDelete, "tasks/"+id, http.StatusNoContent, nil)
	a.ask(http.MethodDelete, "tasks/"+id, http.StatusNotFound, nil)
	if got := a.all(""); len(got) != 0 {
		t.Errorf("the tasks are %v", got)
	}
}

func TestRedeliverySurvivesKill(t *testing.T) {
	t.Parallel()
	rcv, answer := failing(t, http.StatusGone)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, gatewaytest.ExampleSite(t))
	a := adminAPI(t, g)
	const n = 20
	for range n {
		g.Task(rcv.URL)
		rcv.Next(t)
	}
	gatewaytest.Eventually(t, "all are dead", func() error {
		if got := len(a.all("state=dead")); got != n {
			return fmt.Errorf("%d are", got)
		}
		return nil
	})
	g.Kill()
	g.Start()
	answer.Store(http.StatusOK)
	o := a.onMany("redeliver", "host=127.0.0.1")
	g.Kill()
	g.Start()
	if o.Matched != n || o.Changed != n {
		t.Errorf("the overview is %+v", o)
	}
	rcv.Arrivals(t, make(map[string]int), n)
	gatewaytest.Eventually(t, "all are done", func() error {
		if done, all := len(a.all("state=done")), len(a.all("")); done != n || all != n {
			return fmt.Errorf("%d of %d are", done, all)
		}
		return nil
	})
}

func TestPagesListEveryTaskWhileOthersArrive(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { <-hold })
	t.Cleanup(func() { close(hold) })
	g := gatewaytest.Start(t, "queue q {\nworkers 1\n}", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	n := gatewaytest.Fewer(3_200)
	ids := make(chan string, 20_000)
	put := func(count int) {
		for range count {
			resp, text, err := gatewaytest.Send(http.MethodPost, g.URL("/q"), strings.NewReader("{}"))
			var accepted struct {
				TaskID string `json:"task_id"`
			}
			if err != nil || resp.StatusCode != http.StatusAccepted || json.Unmarshal([]byte(text), &accepted) != nil {
				t.Errorf("a request got %v %s", err, text)
				return
			}
			ids <- accepted.TaskID
		}
	}
	done := make(chan struct{})
	for range 8 {
		go func() {
			put(n / 8)
			done <- struct{}{}
		}()
	}
	for range 8 {
		<-done
	}
	want := make(map[string]bool)
	for range len(ids) {
		want[<-ids] = true
	}
	stop := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				put(1)
			}
		}
	}()
	a := adminAPI(t, g)
	listed := a.all("queue=q&limit=333")
	close(stop)
	<-done
	seen := make(map[string]bool)
	for _, id := range listed {
		if seen[id] {
			t.Errorf("%s is listed twice", id)
		}
		seen[id] = true
	}
	missing := 0
	for id := range want {
		if !seen[id] {
			missing++
		}
	}
	if missing > 0 || len(want) != n {
		t.Errorf("%d of %d are missing", missing, len(want))
	}

	total := a.onMany("cancel", "queue=q")
	if total.Changed < n || total.Failed > 0 {
		t.Errorf("canceling returned %+v", total)
	}
	if left := a.all("state=queued"); len(left) > 0 {
		t.Errorf("%d are still queued", len(left))
	}
}

func TestOverviewShowsQueuesHostsSchedulesAndRates(t *testing.T) {
	t.Parallel()
	slow := make(chan struct{})
	rcv := gatewaytest.NewReceiver(t, func(http.ResponseWriter, *http.Request) { <-slow })
	t.Cleanup(func() { close(slow) })
	options := gatewaytest.Delivering("per_host 8") + `
	queue q {
		workers 3
		max_queued 77
		attempts 5
		schedule "@every 1s" {
			uri /q?key=geheim
		}
	}`
	g := gatewaytest.Start(t, options, "callback\ntask_queue /q* q {\nrespond done\n}\nrespond ok")
	a := adminAPI(t, g)
	id := g.Task(rcv.URL)
	rcv.Next(t)
	a.inState(id, task.Delivering)
	var queues []struct {
		Name      string `json:"name"`
		Workers   int    `json:"workers"`
		MaxQueued int    `json:"max_queued"`
		Attempts  int    `json:"attempts"`
	}
	a.ask(http.MethodGet, "queues", http.StatusOK, &queues)
	if len(queues) != 1 || queues[0].Name != "q" || queues[0].Workers != 3 || queues[0].MaxQueued != 77 || queues[0].Attempts != 5 {
		t.Errorf("the queues are %+v", queues)
	}
	var hosts []struct {
		Host     string `json:"host"`
		Pending  int    `json:"pending"`
		InFlight int    `json:"in_flight"`
	}
	a.ask(http.MethodGet, "hosts", http.StatusOK, &hosts)
	if len(hosts) != 1 || "http://"+hosts[0].Host != rcv.URL || hosts[0].Pending != 1 || hosts[0].InFlight != 1 {
		t.Errorf("the hosts are %+v", hosts)
	}
	gatewaytest.Eventually(t, "the schedule has run", func() error {
		var schedules []map[string]string
		if err := a.try(http.MethodGet, "schedules", http.StatusOK, &schedules); err != nil {
			return err
		}
		if len(schedules) != 1 || schedules[0]["last_run"] == "" || schedules[0]["next_run"] <= schedules[0]["last_run"] {
			return fmt.Errorf("they are %v", schedules)
		}
		if s := schedules[0]; s["schedule"] != "@every 1s" || s["uri"] != "/q" || s["method"] != "POST" || s["timezone"] != "UTC" {
			t.Errorf("it is %v", s)
		}
		return nil
	})
	gatewaytest.Eventually(t, "the overview counts", func() error {
		var o struct {
			Tasks   map[string]int     `json:"tasks"`
			Rates   map[string]float64 `json:"rates"`
			Latency map[string]float64 `json:"latency"`
		}
		if err := a.try(http.MethodGet, "overview", http.StatusOK, &o); err != nil {
			return err
		}
		if o.Tasks["delivering"] < 1 || o.Tasks["done"] < 1 || o.Rates["accepted"] <= 0 || o.Rates["completed"] <= 0 || o.Latency["task_p50_ms"] <= 0 {
			return fmt.Errorf("it is %+v", o)
		}
		return nil
	})
}
