package integration

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestLongPollAnswersWhenTaskChanges(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		<-finish
		w.WriteHeader(http.StatusCreated)
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", "{}")
	reaches(t, g, "/q", id, task.Running)
	get := func(path string, header ...string) (*http.Response, string) {
		t.Helper()
		return g.Do(http.MethodGet, "/q/"+id+path, "", header...)
	}
	running, _ := get("")
	etag := running.Header.Get("ETag")
	if etag == "" || running.Header.Get("Retry-After") != "1" {
		t.Fatalf("the running task has %v", running.Header)
	}
	resp, text := get("", "If-None-Match", `"other", `+etag)
	if resp.StatusCode != http.StatusNotModified || text != "" || resp.Header.Get("ETag") != etag || resp.Header.Get("Retry-After") == "" {
		t.Errorf("a known state was answered with %s %v %s", resp.Status, resp.Header, text)
	}
	if resp, _ := get("", "Prefer", "wait=1", "If-None-Match", etag); resp.StatusCode != http.StatusNotModified || resp.Header.Get("Preference-Applied") != "wait=1" {
		t.Errorf("the wait ends with %s %v", resp.Status, resp.Header)
	}
	if resp, _ := get("", "Prefer", "wait=60", "If-None-Match", `W/"queued-1x"`); resp.StatusCode != http.StatusOK {
		t.Errorf("a change that was missed is answered with %s", resp.Status)
	}
	if resp, _ := get("/result", "Prefer", "wait=1"); resp.StatusCode != http.StatusConflict || resp.Header.Get("Retry-After") == "" {
		t.Errorf("the result is answered with %s %v", resp.Status, resp.Header)
	}

	answers := make(chan *http.Response, 2)
	for _, path := range []string{"", "/result"} {
		go func() {
			resp, _, err := gatewaytest.Send(http.MethodGet, g.URL("/q/"+id+path), nil, "Prefer", "wait=600", "If-None-Match", etag)
			if err != nil {
				t.Error(err)
			}
			answers <- resp
		}()
	}
	close(finish)
	statuses := map[int]bool{(<-answers).StatusCode: true, (<-answers).StatusCode: true}
	if !statuses[http.StatusOK] || !statuses[http.StatusCreated] {
		t.Errorf("the change is answered with %v", statuses)
	}
	reaches(t, g, "/q", id, task.Done)
	ended, text := get("", "Prefer", "wait=600", "If-None-Match", etag)
	if ended.StatusCode != http.StatusOK || ended.Header.Get("Retry-After") != "" || !strings.Contains(text, `"COMPLETE"`) {
		t.Errorf("the ended task is answered with %s %v %s", ended.Status, ended.Header, text)
	}
	if resp, _ := get("", "Prefer", "wait=600", "If-None-Match", ended.Header.Get("ETag")); resp.StatusCode != http.StatusNotModified {
		t.Errorf("a final state was answered with %s", resp.Status)
	}
}

func TestRetryAfterIsWhenDelayEnds(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nrespond yes\n}")
	resp, _ := g.Do(http.MethodPost, "/q", "{}", "Task-Delay", "1h")
	polled, _ := g.Do(http.MethodGet, "/q/"+resp.Header.Get("beam-task-id"), "")
	for name, header := range map[string]http.Header{"202": resp.Header, "document": polled.Header} {
		if got, err := strconv.Atoi(header.Get("Retry-After")); err != nil || got < 1800 || got > 3600 {
			t.Errorf("Retry-After of the %s is %q", name, header.Get("Retry-After"))
		}
	}
}

func TestExitEndsLongPolls(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{})
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(begun)
		<-r.Context().Done()
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	answer := make(chan *http.Response, 1)
	go func() {
		resp, _, err := gatewaytest.Send(http.MethodPost, g.URL("/q"), nil, "Prefer", "wait=3600")
		if err != nil {
			t.Error(err)
		}
		answer <- resp
	}()
	<-begun // the client waits by now, or learns that the process exits
	if code := g.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if resp := <-answer; resp == nil || resp.StatusCode != http.StatusAccepted {
		t.Errorf("the waiting client gets %+v", resp)
	}
}
