package integration

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// waitingApp is an endpoint that responds when the test lets it.
type waitingApp struct {
	addr   string
	begun  chan string // IDs of tasks
	finish chan struct{}
}

func newWaitingApp(t *testing.T) *waitingApp {
	t.Helper()
	a := &waitingApp{begun: make(chan string), finish: make(chan struct{})}
	a.addr = gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the server notices a disconnect only after this
		select {
		case a.begun <- r.Header.Get("beam-task-id"):
		case <-r.Context().Done():
			return
		}
		select {
		case <-a.finish:
		case <-r.Context().Done():
			return
		}
		w.Header().Set("Content-Type", "text/x-answer")
		w.Header().Set("Set-Cookie", "of=the-app")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "the answer")
	})
	return a
}

// ask sends a request as a client that waits. When the endpoint has the request, ask
// returns the task's ID. status receives the status that the client gets.
func (a *waitingApp) ask(t *testing.T, g *gatewaytest.Gateway, callbackURL string) (id string, status <-chan int) {
	t.Helper()
	got := make(chan int, 1)
	go func() {
		resp, _, err := gatewaytest.Send(http.MethodPost, g.URL("/"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, callbackURL)),
			"Content-Type", "application/json")
		if err != nil {
			got <- 0
			return
		}
		got <- resp.StatusCode
	}()
	return <-a.begun, got
}

// wantDetail checks the status of a response and a word of its text.
func wantDetail(t *testing.T, g *gatewaytest.Gateway, method, path string, status int, detail string) *http.Response {
	t.Helper()
	resp, text := g.Do(method, path, "")
	if resp.StatusCode != status || !strings.Contains(text, detail) {
		t.Errorf("%s %s: %s %s; expected %d and %q", method, path, resp.Status, text, status, detail)
	}
	if resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s %s can be cached: %v", method, path, resp.Header)
	}
	return resp
}

func TestStatusOfWaitingClientsTask(t *testing.T) {
	t.Parallel()
	app := newWaitingApp(t)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_status /tasks\ncallback\nreverse_proxy "+app.addr)
	id, client := app.ask(t, g, rcv.URL)
	path := "/tasks/" + id
	wantDetail(t, g, http.MethodGet, path, 200, `"state":"running"`)
	wantDetail(t, g, http.MethodGet, path+"/result", 409, "no result yet: it is running")
	close(app.finish)
	if got := <-client; got != http.StatusCreated {
		t.Errorf("the client got %d", got)
	}
	if c := rcv.Next(t); c.TaskID() != id {
		t.Errorf("the callback is %v", c.Header)
	}
	doc := reaches(t, g, "/tasks", id, task.Done)
	if doc.Status != task.Complete || doc.UpstreamStatus != 201 || len(doc.Attempts) != 1 || doc.DeliveredAt.IsZero() {
		t.Errorf("the document is %+v", doc)
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		text := map[string]string{http.MethodGet: "the answer"}[method]
		h := wantDetail(t, g, method, path+"/result", 201, text).Header
		if h.Get("Content-Type") != "text/x-answer" || h.Get("Content-Length") != "10" {
			t.Errorf("%s: the result's header is %v", method, h)
		}
		if h.Get("Content-Security-Policy") != "sandbox" || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: a browser may run the result: %v", method, h)
		}
	}
	if h := wantDetail(t, g, http.MethodHead, path, 200, "").Header; h.Get("Content-Type") != "application/json" {
		t.Errorf("the head of the document is %v", h)
	}
	wantDetail(t, g, http.MethodDelete, path, 409, "the task has ended")
}

func TestStatusLongPoll(t *testing.T) {
	t.Parallel()
	app := newWaitingApp(t)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_status /tasks\ncallback\nreverse_proxy "+app.addr)
	id, client := app.ask(t, g, rcv.URL)
	path := "/tasks/" + id
	running, _ := g.Do(http.MethodGet, path, "")
	etag := running.Header.Get("ETag")
	if resp, text := g.Do(http.MethodGet, path, "", "If-None-Match", etag); resp.StatusCode != http.StatusNotModified || text != "" {
		t.Errorf("a known version: %s %q", resp.Status, text)
	}
	resp, _ := g.Do(http.MethodGet, path, "", "Prefer", "wait=1", "If-None-Match", etag)
	if resp.StatusCode != http.StatusNotModified || resp.Header.Get("Preference-Applied") != "wait=1" {
		t.Errorf("the end of a wait: %s %v", resp.Status, resp.Header)
	}
	changed := make(chan int, 1)
	go func() {
		resp, _, err := gatewaytest.Send(http.MethodGet, g.URL(path), nil, "Prefer", "wait=600", "If-None-Match", etag)
		if err != nil {
			t.Error(err)
			resp = new(http.Response)
		}
		changed <- resp.StatusCode
	}()
	close(app.finish)
	if got := <-changed; got != http.StatusOK {
		t.Errorf("a change during a wait: %d", got)
	}
	if resp, text := g.Do(http.MethodGet, path+"/result", "", "Prefer", "wait=600"); resp.StatusCode != http.StatusCreated || text != "the answer" {
		t.Errorf("the result: %s %q", resp.Status, text)
	}
	<-client
}

func TestStatusCancelsWaitingClientsTask(t *testing.T) {
	t.Parallel()
	app := newWaitingApp(t)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_status /tasks\ncallback\nreverse_proxy "+app.addr)
	id, client := app.ask(t, g, rcv.URL)
	wantDetail(t, g, http.MethodDelete, "/tasks/"+id, 202, id)
	if got := <-client; got != http.StatusServiceUnavailable {
		t.Errorf("the client got %d", got)
	}
	if c := rcv.Next(t); c.TaskID() != id || c.Status() != "FAILED" || c.Body != "error=canceled" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	if doc := reaches(t, g, "/tasks", id, task.Done); doc.Status != task.Failed || doc.Error != "canceled" {
		t.Errorf("the document is %+v", doc)
	}
	wantDetail(t, g, http.MethodGet, "/tasks/"+id+"/result", 410, "canceled")
}

func TestStatusOfQueuesTask(t *testing.T) {
	t.Parallel()
	app := newWaitingApp(t)
	g := gatewaytest.Start(t, "queue q {\nworkers 1\n}", "task_status /tasks\ntask_queue /q q {\nreverse_proxy "+app.addr+"\n}")
	first, second := accepted(t, g, "/q", "{}"), accepted(t, g, "/q", "{}")
	if id := <-app.begun; id != first {
		t.Errorf("%s runs, and not %s", id, first)
	}
	wantDetail(t, g, http.MethodGet, "/tasks/"+second, 200, `"queue":"q","state":"queued"`)
	wantDetail(t, g, http.MethodDelete, "/tasks/"+second, 202, second)
	wantDetail(t, g, http.MethodGet, "/q/"+second+"/result", 410, "canceled")
	close(app.finish)
	reaches(t, g, "/tasks", first, task.Done)
	own := wantDetail(t, g, http.MethodGet, "/q/"+first+"/result", 201, "the answer").Header
	h := wantDetail(t, g, http.MethodGet, "/tasks/"+first+"/result", 201, "the answer").Header
	if own.Get("Set-Cookie") == "" || h.Get("Set-Cookie") != "" || h.Get("Content-Type") != own.Get("Content-Type") {
		t.Errorf("the headers are %v and %v", own, h)
	}
	for _, id := range []string{first, second} {
		_, public := g.Do(http.MethodGet, "/q/"+id, "")
		if _, text := g.Do(http.MethodGet, "/tasks/"+id, ""); text != public {
			t.Errorf("the document is %s; that of the queue %s", text, public)
		}
	}
}

func TestStatusUndoesContentCoding(t *testing.T) {
	t.Parallel()
	const answer = "an answer that is compressed"
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		var zipped bytes.Buffer
		zip := gzip.NewWriter(&zipped)
		_, _ = io.WriteString(zip, answer) // in memory
		_ = zip.Close()
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(zipped.Bytes())
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_status /tasks\ncallback "+rcv.URL+"\nreverse_proxy "+app)
	g.Do(http.MethodPost, "/", "{}", "Accept-Encoding", "gzip")
	id := rcv.Next(t).TaskID()
	if _, text := g.Do(http.MethodGet, "/tasks/"+id+"/result", ""); text != answer {
		t.Errorf("the result is %q", text)
	}
	if resp, text := g.Do(http.MethodGet, "/tasks/"+id+"/result", "", "Accept-Encoding", "gzip"); resp.Header.Get("Content-Encoding") != "gzip" || text == answer {
		t.Errorf("the result is %v %q", resp.Header, text)
	}
}

func TestStatusOfResultThatIsNotKept(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nkeep_results off", "task_status /tasks\ncallback "+rcv.URL+"\nrespond ok")
	g.Post("/", "{}")
	id := rcv.Next(t).TaskID()
	reaches(t, g, "/tasks", id, task.Done)
	wantDetail(t, g, http.MethodGet, "/tasks/"+id+"/result", 404, "no longer kept")
	wantDetail(t, g, http.MethodGet, "/tasks/"+id, 200, id)
}

// Requests to task_status are not tasks, even if a callback or a queue around or beside
// it accepts every request.
func TestStatusRequestIsNoTask(t *testing.T) {
	t.Parallel()
	for name, site := range map[string]string{
		"beside callback": "callback %s\ntask_status /tasks\nrespond ok",
		"beside a queue":  "callback\ntask_queue q {\ncallback %s\nrespond ok\n}\ntask_status /tasks",
		"in a handle":     "callback %s\nhandle /tasks* {\ntask_status\n}\nhandle {\nrespond ok\n}",
		"in a route":      "route {\ncallback %s\ntask_status /tasks\nrespond ok\n}",
		"below a prefix":  "callback %s\nhandle_path /tasks/* {\ntask_status\n}\nrespond ok",
		"after a rewrite": "callback %s\nrewrite /tasks/* /x{path}\ntask_status /x/tasks\nrespond ok",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.ToLocal, fmt.Sprintf(site, rcv.URL))
			g.Post("/", "{}")
			id := rcv.Next(t).TaskID()
			if doc := reaches(t, g, "/tasks", id, task.Done); doc.ID != id {
				t.Errorf("the document is %+v", doc)
			}
			wantDetail(t, g, http.MethodGet, "/tasks/"+id+"/result", 200, "ok")
			if resp := wantDetail(t, g, http.MethodGet, "/tasks/"+id, 200, id); resp.Header.Get("beam-task-id") != "" {
				t.Errorf("the answer names a task: %v", resp.Header)
			}
			wantDetail(t, g, http.MethodDelete, "/tasks/"+id, 409, "the task has ended")
			wantDetail(t, g, http.MethodGet, "/tasks/2f1b6c1e-6a65-4b7c-9d0a-111111111111", 404, "no such task")
			wantDetail(t, g, http.MethodGet, "/tasks/other", 404, "no such task")
			if resp := wantDetail(t, g, http.MethodPost, "/tasks/"+id, 405, "GET"); resp.Header.Get("Allow") != "GET, HEAD, DELETE" {
				t.Errorf("Allow is %q", resp.Header.Get("Allow"))
			}
			g.Post("/", "{}")
			if c := rcv.Next(t); c.TaskID() == id || c.Body != "response=ok" {
				t.Errorf("the next callback is %v %s", c.Header, c.Body)
			}
			if doc := reaches(t, g, "/tasks", id, task.Done); len(doc.Attempts) != 1 {
				t.Errorf("the document is %+v", doc)
			}
			if n := len(rcv.Got); n != 0 {
				t.Errorf("%d more callbacks arrived", n)
			}
		})
	}
}

func TestStatusBehindAuthentication(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `
	basic_auth /tasks/* {
		bob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG
	}
	task_status /tasks
	callback `+rcv.URL+`
	respond ok`)
	g.Post("/", "{}")
	id := rcv.Next(t).TaskID()
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		if resp, text := g.Do(method, "/tasks/"+id, ""); resp.StatusCode != http.StatusUnauthorized || strings.Contains(text, id) {
			t.Errorf("a stranger's %s got %s %s", method, resp.Status, text)
		}
	}
	const bob = "Basic Ym9iOmhpY2N1cA=="
	if resp, text := g.Do(http.MethodGet, "/tasks/"+id, "", "Authorization", bob); resp.StatusCode != http.StatusOK || !strings.Contains(text, id) {
		t.Errorf("bob got %s %s", resp.Status, text)
	}
}

// A client sees the host of a URL that a request named, and the outcomes of the attempts.
// It sees neither the operator's URL nor responses of receivers.
func TestStatusHidesOperatorsURL(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusGone)
		_, _ = io.WriteString(w, "planted-answer")
	})
	unreachable := freeaddr.New(t)
	g := gatewaytest.Start(t, gatewaytest.Delivering("retry 50ms"), fmt.Sprintf(`
	task_status /tasks
	handle /own* {
		callback http://%s/planted-path {
			header X-Token planted-header
		}
		respond ok
	}
	handle /q* {
		task_queue q {
			callback %s/planted-path
			respond ok
		}
	}
	handle {
		callback
		respond ok
	}`, unreachable, rcv.URL))
	own, _ := g.Post("/own", "{}")
	named, _ := g.Post("/", fmt.Sprintf(`{"callback_url":"%s/planted-path"}`, rcv.URL))
	for name, c := range map[string]struct {
		id   string
		host string
	}{
		"the operator's":       {own.Header.Get("beam-task-id"), ""},
		"the operator's queue": {accepted(t, g, "/q", "{}"), ""},
		"a client's":           {named.Header.Get("beam-task-id"), strings.TrimPrefix(rcv.URL, "http://")},
	} {
		doc := reaches(t, g, "/tasks", c.id, task.Dead)
		if doc.CallbackHost != c.host || len(doc.Attempts) == 0 {
			t.Errorf("%s: the document is %+v", name, doc)
		}
		_, text := g.Do(http.MethodGet, "/tasks/"+c.id, "")
		for _, word := range []string{"planted", unreachable, "127.0.0.1"} {
			if strings.Contains(text, word) && (word != "127.0.0.1" || c.host == "") {
				t.Errorf("%s: %s is in %s", name, word, text)
			}
		}
	}
}

func TestStatusAfterKill(t *testing.T) {
	t.Parallel()
	app := newWaitingApp(t)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_status /tasks\ncallback\nreverse_proxy "+app.addr)
	id, client := app.ask(t, g, rcv.URL)
	g.Kill()
	<-client
	g.Start()
	if doc := reaches(t, g, "/tasks", id, task.Done); doc.Status != task.Failed || doc.Error == "" {
		t.Errorf("the document is %+v", doc)
	}
	wantDetail(t, g, http.MethodGet, "/tasks/"+id+"/result", 502, "")
}

// All gateways of a cluster can look up and cancel a task, not only the one that runs it.
func TestStatusOnOtherGateway(t *testing.T) {
	t.Parallel()
	c := gatewaytest.StartCluster(t, 1)
	app := newWaitingApp(t)
	rcv := gatewaytest.NewReceiver(t, nil)
	site := "task_status /tasks\ncallback\ntask_queue /q q {\nrespond ok\n}\nreverse_proxy " + app.addr
	g, other := gatewaytest.Start(t, c.Options(), site), gatewaytest.Start(t, c.Options(), site)
	id, client := app.ask(t, g, rcv.URL)
	reaches(t, other, "/tasks", id, task.Running)
	wantDetail(t, other, http.MethodDelete, "/tasks/"+id, 202, id)
	if got := <-client; got != http.StatusServiceUnavailable {
		t.Errorf("the client got %d", got)
	}
	if c := rcv.Next(t); c.TaskID() != id || c.Body != "error=canceled" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	reaches(t, other, "/tasks", id, task.Done)
	queued := accepted(t, g, "/q", "{}")
	reaches(t, other, "/tasks", queued, task.Done)
	wantDetail(t, other, http.MethodGet, "/tasks/"+queued+"/result", 200, "ok")
}
