package integration

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// rawSend sends a request verbatim and returns the response header.
func rawSend(t *testing.T, g *gatewaytest.Gateway, request string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(gatewaytest.Patience))
	if _, err := io.WriteString(conn, strings.ReplaceAll(request, "\n", "\r\n")); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestPlainRequestKeepsBodyBeforeQueue(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `callback
	handle /queued {
		task_queue q {
			respond ran
		}
	}
	handle {
		@gpu expression {http.request.body}.contains("gpu")
		rewrite @gpu /gpu?x=1
		request_header X-Body {http.request.body}
		request_header X-URI {http.request.uri}
		reverse_proxy `+app+`
	}`)
	body := `{"kind":"gpu"}`
	resp, _ := g.Post("/train", body)
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	if a := <-got; a.body != body || a.Header.Get("X-Body") != body || a.Header.Get("X-Uri") != "/gpu?x=1" || a.URL.Path != "/gpu" {
		t.Errorf("the app got %s %q, %v", a.URL, a.body, a.Header)
	}
}

func TestClientTaskHeaderNeverReachesApp(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `request_header X-User alice
	callback
	handle /q {
		task_queue q {
			reverse_proxy `+app+`
		}
	}
	handle /inner {
		callback {
			task_header X-Job
		}
		reverse_proxy `+app+`
	}
	reverse_proxy `+app)
	task := `{"callback_url":"` + rcv.URL + `"}`
	for _, path := range []string{"/", "/q", "/inner"} {
		for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST"} {
			for _, body := range []string{"", "{}", task} {
				if path == "/q" && method != "POST" {
					continue
				}
				resp, _ := g.Do(method, path, body, "Content-Type", "application/json", "Beam-Task-Id", "forged", "Beam_Task_Id", "forged",
					"X-Job", "forged", "Connection", "keep-alive, X-User, Beam-Task-Id, Content-Type", "Upgrade", "h2c")
				a := <-got
				if strings.Contains(strings.Join(a.Header["Beam-Task-Id"], ""), "forged") || len(a.Header["Beam_task_id"]) > 0 ||
					path == "/inner" && len(a.Header["X-Job"]) > 0 {
					t.Errorf("%s %s %s: the app got %v", method, path, body, a.Header)
				}
				id := resp.Header.Get("beam-task-id")
				if a.task() != id {
					t.Errorf("%s %s %s: the app got task %q, the client %q", method, path, body, a.task(), id)
				}
				if id != "" && a.Header.Get("X-User") != "alice" {
					t.Errorf("%s %s %s: the operator's header is %q", method, path, body, a.Header.Get("X-User"))
				}
			}
		}
	}
}

func TestClientCannotSuppressOperatorCallback(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, nil)
	own := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback "+own.URL+"\nreverse_proxy "+app)
	for _, header := range []string{
		"Upgrade: foo", "Upgrade: websocket\nConnection: upgrade", "Upgrade: foo\nConnection: keep-alive",
		"Callback-Hop: 1", "Callback-Hop: 9", "Callback-Hop: x", "Callback-Hop: 9\nCallback-Hop-Mac: x",
	} {
		resp := rawSend(t, g, "GET /x HTTP/1.1\nHost: "+g.Addr+"\n"+header+"\n\n")
		id := resp.Header.Get("beam-task-id")
		if id == "" || resp.StatusCode != 200 {
			t.Errorf("%q: %s, no task", header, resp.Status)
			continue
		}
		if c := own.Next(t); c.TaskID() != id || c.Header.Get("Callback-Hop") != "1" {
			t.Errorf("%q: the callback is %v", header, c.Header)
		}
	}
	for _, header := range []string{"Upgrade: websocket\nConnection: upgrade", "Callback-Hop: 9"} {
		resp := rawSend(t, g, "POST /x HTTP/1.1\nHost: "+g.Addr+"\n"+header+"\nContent-Length: 0\n\n")
		if id := resp.Header.Get("beam-task-id"); id == "" || own.Next(t).TaskID() != id {
			t.Errorf("%q: a POST is task %q", header, id)
		}
	}
}

func TestCallbackLoopEnds(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback http://%ADDR%/loop?a=%20b\nreverse_proxy "+app)
	g.Do("GET", "/", "")
	last := ""
	for i := range 10 { // the client's request and nine callbacks
		a := <-got
		if i < 9 && a.task() == "" {
			t.Errorf("request %d is no task", i)
		}
		last = a.task()
	}
	if last != "" {
		t.Errorf("the ninth callback is task %q", last)
	}
	g.Do("GET", "/end", "", "X-End", "1")
	for {
		if a := <-got; a.Header.Get("X-End") != "" {
			break
		} else if a.Header.Get("Callback-Hop") != "" {
			t.Fatalf("unexpected callback: %v", a.Header)
		}
	}
}

func TestOperatorHeadersGoToOperatorURLOnly(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, nil)
	own, named := gatewaytest.NewReceiver(t, nil), gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `handle /own {
		callback `+own.URL+` {
			header Authorization "Bearer secret"
		}
		reverse_proxy `+app+`
	}
	handle /none {
		callback `+own.URL+` {
			from none
			header Authorization "Bearer secret"
		}
		reverse_proxy `+app+`
	}
	handle {
		callback {
			header Authorization "Bearer public"
		}
		reverse_proxy `+app+`
	}`)
	task := `{"callback_url":"` + named.URL + `"}`
	for _, c := range []struct {
		path, body, want string
		rcv              *gatewaytest.Receiver
	}{
		{"/own", "{}", "Bearer secret", own},
		{"/own", task, "", named},
		{"/none", task, "Bearer secret", own},
		{"/none", `{"callback_url":5}`, "Bearer secret", own},
		{"/", task, "Bearer public", named},
	} {
		resp, _ := g.Post(c.path, c.body)
		if cb := c.rcv.Next(t); cb.TaskID() != resp.Header.Get("beam-task-id") || cb.Header.Get("Authorization") != c.want {
			t.Errorf("%s %s: the callback has %q", c.path, c.body, cb.Header.Get("Authorization"))
		}
	}
}

func TestQueueTakesOnlyItsPreferences(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	g := gatewaytest.Start(t, "", "task_queue q {\nreverse_proxy "+app+"\n}")
	g.Do("POST", "/", "", "Prefer", "respond-async, return=minimal", "Prefer", "wait=1")
	if a := <-got; strings.Join(a.Header["Prefer"], ";") != "return=minimal" {
		t.Errorf("the app got Prefer: %q", a.Header["Prefer"])
	}
	resp, text := g.Do("POST", "/", "", "Idempotency-Key", "a", "Idempotency-Key", "a")
	if detail := checkProblem(t, resp, text, 400); !strings.Contains(detail, "twice") {
		t.Errorf("detail %q does not name the error", detail)
	}
}

func TestURLsAreNormalized(t *testing.T) {
	t.Parallel()
	targets := make(chan string, 100)
	rcv := gatewaytest.NewReceiver(t, func(_ http.ResponseWriter, r *http.Request) { targets <- r.RequestURI })
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nrespond ok")
	for named, want := range map[string]string{
		"/p?name=John Smith": "/p?name=John%20Smith",
		"/p?name=Jürgen":     "/p?name=J%C3%BCrgen",
		"/ü p?a=%C3%BC+1":    "/%C3%BC%20p?a=%C3%BC+1",
	} {
		g.Task(rcv.URL + named)
		rcv.Next(t)
		if got := <-targets; got != want {
			t.Errorf("%s is called as %s", named, got)
		}
	}
	resp, text := g.Post("/", `{"callback_url":"`+rcv.URL+`/hook "}`)
	if detail := checkProblem(t, resp, text, 400); !strings.Contains(detail, "space") {
		t.Errorf("detail %q does not name the error", detail)
	}
}
