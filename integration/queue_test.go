package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// accepted posts a body to a queue and returns the task's ID.
func accepted(t *testing.T, g *gatewaytest.Gateway, path, body string, header ...string) string {
	t.Helper()
	resp, text := g.Do(http.MethodPost, path, body, append([]string{"Content-Type", "application/json"}, header...)...)
	var doc struct {
		TaskID string `json:"task_id"`
	}
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("the queue answered %s: %s", resp.Status, text)
	}
	if err := json.Unmarshal([]byte(text), &doc); err != nil || doc.TaskID == "" {
		t.Fatalf("the queue answered %s: %v", text, err)
	}
	if got := resp.Header.Get("beam-task-id"); got != doc.TaskID {
		t.Errorf("beam-task-id is %q, task_id %q", got, doc.TaskID)
	}
	if want, got := path+"/"+doc.TaskID, resp.Header.Get("Location"); got != want {
		t.Errorf("Location is %q, want %q", got, want)
	}
	return doc.TaskID
}

// document fetches a task's document.
func document(g *gatewaytest.Gateway, path, id string) (task.Task, error) {
	var doc task.Task
	resp, text, err := gatewaytest.Send(http.MethodGet, g.URL(path+"/"+id), nil)
	if err != nil {
		return doc, err
	}
	if resp.StatusCode != http.StatusOK {
		return doc, fmt.Errorf("%s: %s", resp.Status, text)
	}
	return doc, json.Unmarshal([]byte(text), &doc)
}

// reaches waits until a task is in a state.
func reaches(t *testing.T, g *gatewaytest.Gateway, path, id string, state task.State) task.Task {
	t.Helper()
	var doc task.Task
	gatewaytest.Eventually(t, "the task is "+string(state), func() (err error) {
		if doc, err = document(g, path, id); err != nil {
			return err
		}
		if doc.State != state {
			return fmt.Errorf("it is %+v", doc)
		}
		return nil
	})
	return doc
}

func TestQueueAnswersAtOnce(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		<-finish
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-App", "yes")
		fmt.Fprintf(w, `{"method":%q,"uri":%q,"host":%q,"body":%q,"id":%q}`,
			r.Method, r.RequestURI, r.Host, body, r.Header.Get("beam-task-id"))
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\ntask_queue /train* train {\nreverse_proxy "+app+"\n}")

	sent := fmt.Sprintf(`{"n":1,"callback_url":%q}`, rcv.URL)
	resp, text := g.Post("/train?x=1", sent)
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("%s %s", resp.Status, text)
	}
	id := resp.Header.Get("beam-task-id")
	doc := reaches(t, g, "/train", id, task.Running)
	if doc.Queue != "train" || doc.Status != "" || doc.StartedAt.IsZero() {
		t.Errorf("the running task is %+v", doc)
	}
	if resp, _ := g.Do(http.MethodGet, "/train/"+id+"/result", ""); resp.StatusCode != http.StatusConflict {
		t.Errorf("the result of a running task: %s", resp.Status)
	}
	close(finish)

	c := rcv.Next(t)
	if c.TaskID() != id || c.Status() != "COMPLETE" || !strings.Contains(c.Body, "uri=%2Ftrain%3Fx%3D1") {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	doc = reaches(t, g, "/train", id, task.Done)
	if doc.Status != task.Complete || doc.UpstreamStatus != 200 || doc.DeliveredAt.IsZero() || len(doc.Attempts) != 1 {
		t.Errorf("the task is %+v", doc)
	}
	resp, text = g.Do(http.MethodGet, "/train/"+id+"/result", "")
	want := fmt.Sprintf(`{"method":"POST","uri":"/train?x=1","host":%q,"body":%q,"id":%q}`, g.Addr, sent, id)
	if resp.StatusCode != 200 || text != want || resp.Header.Get("X-App") != "yes" {
		t.Errorf("the result is %s %v %s, want %s", resp.Status, resp.Header, text, want)
	}
}

func TestPollQueueWithoutCallback(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", `{}`)
	doc := reaches(t, g, "/q", id, task.Done)
	if doc.Status != task.Failed || doc.UpstreamStatus != http.StatusTeapot {
		t.Errorf("the task is %+v", doc)
	}
	if resp, _ := g.Do(http.MethodGet, "/q/"+id+"/result", ""); resp.StatusCode != http.StatusTeapot {
		t.Errorf("the result is %s", resp.Status)
	}
	if resp, _ := g.Do(http.MethodGet, "/q/2f1b6c1e-6a65-4b7c-9d0a-111111111111", ""); resp.StatusCode != http.StatusNotFound {
		t.Errorf("an unknown task is %s", resp.Status)
	}
}

func TestCancelInEveryState(t *testing.T) {
	t.Parallel()
	begun, stopped := make(chan struct{}, 10), make(chan struct{}, 10)
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		// A server detects a disconnect only after it has read the body.
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		begun <- struct{}{}
		<-r.Context().Done()
		stopped <- struct{}{}
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nqueue q {\nworkers 1\n}", "callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}")
	body := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)
	running := accepted(t, g, "/q", body)
	<-begun
	waiting := accepted(t, g, "/q", body)

	for _, id := range []string{waiting, running} {
		if resp, text := g.Do(http.MethodDelete, "/q/"+id, ""); resp.StatusCode != http.StatusAccepted {
			t.Fatalf("canceling: %s %s", resp.Status, text)
		}
		c := rcv.Next(t)
		if c.TaskID() != id || c.Status() != "FAILED" || c.Body != "error=canceled" {
			t.Errorf("the callback is %v %s", c.Header, c.Body)
		}
		reaches(t, g, "/q", id, task.Done)
		if resp, _ := g.Do(http.MethodDelete, "/q/"+id, ""); resp.StatusCode != http.StatusConflict {
			t.Errorf("canceling an ended task: %s", resp.Status)
		}
		if resp, text := g.Do(http.MethodGet, "/q/"+id+"/result", ""); resp.StatusCode != http.StatusGone || !strings.Contains(text, "canceled") {
			t.Errorf("the result of a canceled task: %s %s", resp.Status, text)
		}
	}
	<-stopped // the upstream request was canceled
	if len(begun) != 0 {
		t.Error("the task that waited was run")
	}
}

func TestIdempotencyKeyStartsOneTask(t *testing.T) {
	t.Parallel()
	runs := make(chan struct{}, 100)
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { runs <- struct{}{} })
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	ids := make(chan string, 64)
	for range 64 {
		go func() {
			resp, _, err := gatewaytest.Send(http.MethodPost, g.URL("/q"), strings.NewReader(`{"n":1}`), "Idempotency-Key", "k1")
			if err != nil {
				t.Error(err)
			}
			ids <- resp.Header.Get("beam-task-id")
		}()
	}
	first := <-ids
	for range 63 {
		if id := <-ids; id != first || id == "" {
			t.Errorf("a second ID %q beside %q", id, first)
		}
	}
	reaches(t, g, "/q", first, task.Done)
	if id := accepted(t, g, "/q", `{"n":1}`, "Idempotency-Key", "k1"); id != first {
		t.Errorf("after its end the key has the task %s", id)
	}
	resp, _ := g.Do(http.MethodPost, "/q", `{"n":2}`, "Idempotency-Key", "k1")
	if resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("the key with another body: %s", resp.Status)
	}
	other := accepted(t, g, "/q", `{"n":2}`, "Idempotency-Key", "k2")
	reaches(t, g, "/q", other, task.Done)
	if len(runs) != 2 {
		t.Errorf("%d runs of 2 tasks", len(runs))
	}
}

func TestPreferWaitAnswersInline(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/q/slow" {
			<-finish
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "made")
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	resp, text := g.Do(http.MethodPost, "/q/fast", "", "Prefer", "wait=30")
	if resp.StatusCode != http.StatusCreated || text != "made" || resp.Header.Get("Preference-Applied") != "wait=30" {
		t.Errorf("waiting gave %s %v %s", resp.Status, resp.Header, text)
	}
	resp, text = g.Do(http.MethodPost, "/q/slow", "", "Prefer", "respond-async, wait=1")
	if resp.StatusCode != http.StatusAccepted || strings.Join(resp.Header["Preference-Applied"], ", ") != "wait=1, respond-async" {
		t.Errorf("waiting too short gave %s %v %s", resp.Status, resp.Header, text)
	}
	resp, text = g.Do(http.MethodPost, "/q/slow", "", "Prefer", "respond-async")
	if resp.StatusCode != http.StatusAccepted || resp.Header.Get("Preference-Applied") != "respond-async" || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("not waiting gave %s %v %s", resp.Status, resp.Header, text)
	}
	close(finish)
}

func TestFullQueueRefuses(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { <-finish })
	g := gatewaytest.Start(t, "queue q {\nworkers 1\nmax_queued 3\n}", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	reaches(t, g, "/q", accepted(t, g, "/q", "{}"), task.Running)
	var last string
	for range 3 {
		last = accepted(t, g, "/q", "{}", "Idempotency-Key", "k"+last)
	}
	first := accepted(t, g, "/q", "{}", "Idempotency-Key", "k")
	if doc, err := document(g, "/q", first); err != nil || doc.State != task.Queued {
		t.Errorf("a known key on a full queue has the task %+v: %v", doc, err)
	}
	resp, text := g.Post("/q", "{}")
	if resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one too many gave %s %s", resp.Status, text)
	}
	close(finish)
	reaches(t, g, "/q", last, task.Done)
	accepted(t, g, "/q", "{}")
}

func TestKilledGatewayRetriesUpToAttempts(t *testing.T) {
	t.Parallel()
	begun := make(chan string, 10)
	block := make(chan struct{})
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		begun <- r.Header.Get("beam-task-id")
		<-block
	})
	defer close(block)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nqueue q {\nattempts 2\n}", "task_queue /q* q {\ncallback "+rcv.URL+"\nreverse_proxy "+app+"\n}")
	next := func() string {
		t.Helper()
		select {
		case id := <-begun:
			return id
		case <-time.After(gatewaytest.Patience):
			t.Fatal("no task runs")
			panic("unreachable")
		}
	}
	id := accepted(t, g, "/q", "{}")
	for range 2 {
		if got := next(); got != id {
			t.Errorf("task %s runs, want %s", got, id)
		}
		g.Kill()
		g.Start()
	}
	c := rcv.Next(t)
	if c.TaskID() != id || c.Status() != "FAILED" || errorOf(t, c) != task.ErrorHolderDied {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	if doc := reaches(t, g, "/q", id, task.Done); doc.Status != task.Failed {
		t.Errorf("the task is %+v", doc)
	}
	// The failed task would run before the task accepted now.
	if got, other := accepted(t, g, "/q", "{}"), next(); got != other {
		t.Errorf("task %s runs, want %s", other, got)
	}
}

func TestStopUsesNoAttempt(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{}, 10)
	block := make(chan struct{})
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-block
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nqueue q {\nattempts 1\n}\n}\ngrace_period 1s\nservers {",
		"callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	<-begun
	if code := g.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	g.Start()
	<-begun // at once, although only one attempt is allowed
	close(block)
	if c := rcv.Next(t); c.TaskID() != id || c.Status() != "COMPLETE" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
}

func TestQueueRetriesStatuses(t *testing.T) {
	t.Parallel()
	statuses := []int{503, 200}
	begun := make(chan struct{}, 10)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(statuses[len(begun)])
		begun <- struct{}{}
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	doc := reaches(t, g, "/q", accepted(t, g, "/q", "{}"), task.Done)
	if doc.Status != task.Complete || len(begun) != 2 {
		t.Errorf("after %d starts the task is %+v", len(begun), doc)
	}
}

func TestQueueWithLargeBody(t *testing.T) {
	t.Parallel()
	const size = 50 << 20
	got := make(chan int64, 1)
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- n
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\ncallback {\nmax_request 64MiB\n}\nreverse_proxy "+app+"\n}")
	resp, text, err := gatewaytest.Send(http.MethodPost, g.URL("/q"), io.LimitReader(zeros{}, size), "Content-Type", "application/octet-stream")
	if err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("%v %v %s", err, resp, text)
	}
	if n := <-got; n != size {
		t.Errorf("the app got %d bytes", n)
	}
	resp, text, err = gatewaytest.Send(http.MethodPost, g.URL("/q"), io.LimitReader(zeros{}, 65<<20), "Content-Type", "application/octet-stream")
	if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a larger one: %v %v %s", err, resp, text)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestScheduleMakesTasks(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, body)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	options := gatewaytest.ToLocal + `
	queue q {
		schedule @every 1s {
			uri /nightly?x=1
			body "{\"report\":1}"
		}
	}`
	g := gatewaytest.Start(t, options, "task_queue /q* q {\ncallback "+rcv.URL+"\nreverse_proxy "+app+"\n}")
	first, second := rcv.Next(t), rcv.Next(t)
	if first.TaskID() == second.TaskID() || first.TaskID() == "" {
		t.Errorf("two ticks made the tasks %q and %q", first.TaskID(), second.TaskID())
	}
	if want := "response=POST+%2Fnightly%3Fx%3D1+%7B%22report%22%3A1%7D"; first.Body != want {
		t.Errorf("the callback is %s", first.Body)
	}
	// Later runs call the new URL.
	other := gatewaytest.NewReceiver(t, nil)
	g.Configure(options, "task_queue /q* q {\ncallback "+other.URL+"\nreverse_proxy "+app+"\n}")
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	if c := other.Next(t); c.Body != first.Body {
		t.Errorf("the callback to the new URL is %s", c.Body)
	}
	g.Configure(gatewaytest.ToLocal, "task_queue /q* q {\ncallback "+rcv.URL+"\nreverse_proxy "+app+"\n}")
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	var schedules []any
	if adminAPI(t, g).ask(http.MethodGet, "schedules", http.StatusOK, &schedules); len(schedules) != 0 {
		t.Errorf("the schedule is left: %v", schedules)
	}
}
