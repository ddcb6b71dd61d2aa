package integration

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// cancel asks a queue to cancel a task and returns the status of the response.
func cancel(g *gatewaytest.Gateway, path, id string) int {
	g.T.Helper()
	resp, _ := g.Do(http.MethodDelete, path+"/"+id, "")
	return resp.StatusCode
}

func TestCancelBetweenAttempts(t *testing.T) {
	t.Parallel()
	runs := make(chan struct{}, 10)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		runs <- struct{}{}
		w.Header().Set("Retry-After", "10") // long enough to cancel the task before it runs again
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_queue /q* q {\ncallback "+rcv.URL+"\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", "{}")
	<-runs
	if doc := reaches(t, g, "/q", id, task.Queued); doc.NextAttemptAt.Sub(doc.CreatedAt) < 10*time.Second {
		t.Errorf("Retry-After is not heeded: %+v", doc)
	}
	if got := cancel(g, "/q", id); got != http.StatusAccepted {
		t.Errorf("canceling between attempts: %d", got)
	}
	if c := rcv.Next(t); c.TaskID() != id || c.Status() != "FAILED" || c.Body != "error=canceled" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	reaches(t, g, "/q", id, task.Done)
	// A later task of the same queue has finished. The canceled task would have run
	// before it.
	other := accepted(t, g, "/q", "{}")
	<-runs
	<-runs
	if doc, err := document(g, "/q", other); err != nil || len(runs) != 0 {
		t.Errorf("%d more runs; %+v %v", len(runs), doc, err)
	}
}

func TestFinishedTaskCannotBeCanceled(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {})
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/gone" {
			w.WriteHeader(http.StatusGone)
		} else {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\ntask_queue /q* q {\nreverse_proxy "+app+"\n}")
	failing := accepted(t, g, "/q", fmt.Sprintf(`{"callback_url":"%s/failing"}`, rcv.URL))
	gone := accepted(t, g, "/q", fmt.Sprintf(`{"callback_url":"%s/gone"}`, rcv.URL))
	reaches(t, g, "/q", failing, task.Delivering)
	reaches(t, g, "/q", gone, task.Dead)
	for _, id := range []string{failing, gone} {
		if got := cancel(g, "/q", id); got != http.StatusConflict {
			t.Errorf("canceling: %d", got)
		}
		if doc, err := document(g, "/q", id); err != nil || doc.Status != task.Complete {
			t.Errorf("the task is %+v: %v", doc, err)
		}
		if resp, _ := g.Do(http.MethodGet, "/q/"+id+"/result", ""); resp.StatusCode != http.StatusOK {
			t.Errorf("its result is %s", resp.Status)
		}
	}
	if got := cancel(g, "/q", "2f1b6c1e-6a65-4b7c-9d0a-111111111111"); got != http.StatusNotFound {
		t.Errorf("canceling an unknown task: %d", got)
	}
}

func TestQueueHidesWaitingClientsTasks(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan string), make(chan struct{})
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		begun <- r.Header.Get("beam-task-id")
		<-finish
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\ntask_queue /q* q {\nrespond yes\n}\ntask_queue /r* r {\nrespond yes\n}\nreverse_proxy "+app)
	go func() {
		_, _, _ = gatewaytest.Send(http.MethodPost, g.URL("/"), strings.NewReader(fmt.Sprintf(`{"callback_url":%q}`, rcv.URL)),
			"Content-Type", "application/json") // the callback shows the result
	}()
	id := <-begun
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		if resp, _ := g.Do(method, "/q/"+id, ""); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s of a waiting client's task: %s", method, resp.Status)
		}
	}
	close(finish)
	if c := rcv.Next(t); c.Status() != "COMPLETE" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	other := accepted(t, g, "/r", "{}")
	if got := cancel(g, "/q", other); got != http.StatusNotFound {
		t.Errorf("canceling another queue's task: %d", got)
	}
}

// A path that ends with a UUID is a lookup only on a route of the queue.
func TestLookUpPathOutsideQueueIsTask(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Method) })
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback "+rcv.URL+"\ntask_queue /q q {\ncallback "+rcv.URL+"\nrespond yes\n}\nreverse_proxy "+app)
	id := accepted(t, g, "/q", "{}")
	if c := rcv.Next(t); c.TaskID() != id {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	if resp, text := result(t, g, "/q", id); text != "yes" || resp.Header.Get("beam-task-id") != id {
		t.Errorf("the result is %v %s", resp.Header, text)
	}
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		resp, _ := g.Do(method, "/users/"+id, "")
		// The next callback belongs to this request, because lookups have none.
		if c := rcv.Next(t); c.Body != "response="+method || c.TaskID() != resp.Header.Get("beam-task-id") || c.TaskID() == id {
			t.Errorf("%s got %v; the callback is %v %s", method, resp.Header, c.Header, c.Body)
		}
	}
}

func TestQueueInNamedRoute(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal+`
		}
	}
	&(queue) {
		task_queue q {
			respond "run later"
		`, "callback\ninvoke queue")
	id := accepted(t, g, "/q", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	if c := rcv.Next(t); c.TaskID() != id || c.Body != "response=run+later" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
}

// A queue accepts any request. A response to HEAD has a content-length without a body,
// and there is no client to switch protocols with.
func TestQueueAcceptsHEADAndUpgrade(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			w.WriteHeader(http.StatusSwitchingProtocols)
			return
		}
		w.Header().Set("Content-Length", "1234")
		w.WriteHeader(http.StatusAccepted)
		if r.Method != http.MethodHead {
			_, _ = io.WriteString(w, strings.Repeat("x", 1234))
		}
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	for name, c := range map[string]struct {
		method string
		header []string
		size   int
	}{
		"HEAD":       {http.MethodHead, nil, 0},
		"an upgrade": {http.MethodGet, []string{"Connection", "Upgrade", "Upgrade", "websocket"}, 1234},
	} {
		resp, _ := g.Do(c.method, "/q", "", c.header...)
		id := resp.Header.Get("beam-task-id")
		resp, text := result(t, g, "/q", id)
		if resp.StatusCode != http.StatusAccepted || len(text) != c.size {
			t.Errorf("%s: the result is %s and %d bytes", name, resp.Status, len(text))
		}
	}
}

func TestResultIsAppResponse(t *testing.T) {
	t.Parallel()
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	if _, err := zip.Write([]byte(strings.Repeat("text ", 1000))); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Twice"] = []string{"a", "b"}
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.Header().Set("Keep-Alive", "timeout=5")
		switch r.URL.Path {
		case "/q/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(zipped.Bytes())
		case "/q/bytes":
			w.Header().Set("Content-Type", "image/png")
			w.WriteHeader(http.StatusAccepted)
			_, _ = w.Write([]byte{0, 1, 0xff, '\n', 0xfe})
		case "/q/none":
			w.WriteHeader(http.StatusNoContent)
		case "/q/late":
			<-r.Context().Done()
		}
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\ncallback {\ntimeout 10s\n}\nreverse_proxy "+app+"\n}")
	for path, want := range map[string]struct {
		status int
		body   string
	}{
		"/q/gzip":  {200, zipped.String()},
		"/q/bytes": {202, "\x00\x01\xff\n\xfe"},
		"/q/none":  {204, ""},
	} {
		resp, text := g.Do(http.MethodPost, path, "", "Prefer", "wait=60", "Accept-Encoding", "gzip")
		check := func(what string) {
			t.Helper()
			if resp.StatusCode != want.status || text != want.body {
				t.Errorf("%s %s: %s %q", what, path, resp.Status, text)
			}
			header := resp.Header
			if strings.Join(header["X-Twice"], " ") != "a b" || header.Get("Keep-Alive") != "" || header.Get("X-Hop") != "" {
				t.Errorf("%s %s: the header is %v", what, path, header)
			}
			if (header.Get("Content-Encoding") == "gzip") != (path == "/q/gzip") {
				t.Errorf("%s %s: Content-Encoding %q", what, path, header.Get("Content-Encoding"))
			}
		}
		check("waiting for")
		id := resp.Header.Get("beam-task-id")
		for _, form := range []string{"/%s/result", "/%s/result/"} {
			resp, text = g.Do(http.MethodGet, path+fmt.Sprintf(form, strings.ToUpper(id)), "", "Accept-Encoding", "gzip")
			check("fetching")
		}
		want.body = ""
		resp, text = g.Do(http.MethodHead, path+"/"+id+"/result", "", "Accept-Encoding", "gzip")
		check("the head of")
		if resp, _ := g.Do(http.MethodGet, path+"/"+strings.ToUpper(id)+"/", ""); resp.StatusCode != http.StatusOK {
			t.Errorf("the document with a slash: %s", resp.Status)
		}
	}
	resp, text := g.Do(http.MethodPost, "/q/late", "", "Prefer", "wait=60")
	if resp.StatusCode != http.StatusGatewayTimeout || !strings.Contains(text, "did not finish within 10s") {
		t.Errorf("a task that timed out: %s %s", resp.Status, text)
	}
	if strings.Contains(g.Log.String(), `"level":"error"`) {
		t.Error("an error was logged")
	}
}

func TestQueueUsesOriginalPath(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RequestURI) })
	g := gatewaytest.Start(t, "", `
	handle_path /api/* {
		task_queue stripped {
			reverse_proxy `+app+`
		}
	}
	route /v1/* {
		uri strip_prefix /v1
		rewrite * /new{uri}
		task_queue rewritten {
			reverse_proxy `+app+`
		}
	}
	task_queue /with* spaces {
		reverse_proxy `+app+`
	}`)
	for path, want := range map[string]string{
		"/api/train":     "/train",
		"/v1/train":      "/new/train",
		"/with%20space":  "/with%20space",
		"/with/%2Fslash": "/with/%2Fslash",
	} {
		id := accepted(t, g, path, "{}")
		reaches(t, g, path, id, task.Done)
		if resp, text := g.Do(http.MethodGet, path+"/"+id+"/result", ""); text != want {
			t.Errorf("%s reached the app as %s %s", path, text, resp.Status)
		}
	}
	resp, _ := g.Do(http.MethodPost, "//with", "{}")
	if resp.StatusCode == http.StatusAccepted && strings.HasPrefix(resp.Header.Get("Location"), "//") {
		t.Errorf("Location names another host: %s", resp.Header.Get("Location"))
	}
}
