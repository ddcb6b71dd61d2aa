package integration

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestIdempotencyKeysAreScoped(t *testing.T) {
	t.Parallel()
	const hiccup = "$2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG"
	g := gatewaytest.Start(t, "queue tenants {\nidempotency_scope {http.request.header.X-Tenant}\n}", `
	route /private* {
		basic_auth {
			alice `+hiccup+`
			bob `+hiccup+`
		}
		task_queue private {
			respond {http.auth.user.id}
		}
	}
	task_queue /tenants* tenants {
		respond ok
	}
	route /two* {
		@second header X-Queue second
		task_queue @second second {
			respond ok
		}
		task_queue first {
			respond ok
		}
	}
	task_queue /q* q {
		respond ok
	}`)
	basic := func(user string) string {
		r, err := http.NewRequest(http.MethodGet, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth(user, "hiccup")
		return r.Header.Get("Authorization")
	}
	for name, c := range map[string]struct {
		first, second []string // method, path and header
		same          bool
	}{
		"the same request":     {[]string{"POST", "/q"}, []string{"POST", "/q"}, true},
		"another path":         {[]string{"POST", "/q/a"}, []string{"POST", "/q/b"}, false},
		"another query":        {[]string{"POST", "/q?a"}, []string{"POST", "/q?b"}, false},
		"another method":       {[]string{"POST", "/q/m"}, []string{"PUT", "/q/m"}, false},
		"another queue":        {[]string{"POST", "/q"}, []string{"POST", "/tenants"}, false},
		"one path, two queues": {[]string{"POST", "/two"}, []string{"POST", "/two", "X-Queue", "second"}, false},
		"the same user":        {[]string{"POST", "/private", "Authorization", basic("alice")}, []string{"POST", "/private", "Authorization", basic("alice")}, true},
		"another user":         {[]string{"POST", "/private", "Authorization", basic("alice")}, []string{"POST", "/private", "Authorization", basic("bob")}, false},
		"the same tenant":      {[]string{"POST", "/tenants", "X-Tenant", "a"}, []string{"POST", "/tenants", "X-Tenant", "a"}, true},
		"another tenant":       {[]string{"POST", "/tenants", "X-Tenant", "a"}, []string{"POST", "/tenants", "X-Tenant", "b"}, false},
		"header not in scope":  {[]string{"POST", "/q/t", "X-Tenant", "a"}, []string{"POST", "/q/t", "X-Tenant", "b"}, true},
		"tenant and no tenant": {[]string{"POST", "/tenants", "X-Tenant", "a"}, []string{"POST", "/tenants"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			send := func(request []string) string {
				resp, text := g.Do(request[0], request[1], "x", append(request[2:], "Idempotency-Key", "1")...)
				if resp.StatusCode != http.StatusAccepted {
					t.Fatalf("%v: %s %s", request[:2], resp.Status, text)
				}
				return resp.Header.Get("beam-task-id")
			}
			if a, b := send(c.first), send(c.second); (a == b) != c.same {
				t.Errorf("the tasks are %s and %s", a, b)
			}
		})
	}
}

func TestClientSeesNoOperatorURL(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "secret answer") })
	closed := freeaddr.New(t)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_queue /q q {\ncallback "+rcv.URL+"/secret\nrespond ok\n}\n"+
		"task_queue /closed closed {\ncallback http://"+closed+"\nrespond ok\n}")
	host := strings.TrimPrefix(rcv.URL, "http://")
	own := accepted(t, g, "/q", "{}")
	named := accepted(t, g, "/q", fmt.Sprintf(`{"callback_url":"%s/named"}`, rcv.URL))
	for id, sees := range map[string]bool{own: false, named: true} {
		reaches(t, g, "/q", id, task.Done)
		resp, text := g.Do(http.MethodGet, "/q/"+id, "")
		if strings.Contains(text, host) != sees || strings.Contains(text, "secret") {
			t.Errorf("the document is %s", text)
		}
		var doc task.Task
		if err := json.Unmarshal([]byte(text), &doc); err != nil || len(doc.Attempts) != 1 {
			t.Errorf("the document is %s: %v", text, err)
		}
		if got := resp.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("Cache-Control of the document is %q", got)
		}
	}
	failing := accepted(t, g, "/closed", "{}")
	gatewaytest.Eventually(t, "an attempt has failed", func() error {
		doc, err := document(g, "/closed", failing)
		if err == nil && len(doc.Attempts) == 0 {
			err = errNotThere
		}
		if err == nil && (doc.Attempts[0].Error != "not delivered" || doc.CallbackHost != "") {
			t.Errorf("the document is %+v", doc)
		}
		return err
	})
}

func TestTaskResponsesAreNotCached(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=3600")
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", "{}")
	reaches(t, g, "/q", id, task.Done)
	const unknown = "00000000-0000-4000-8000-000000000000"
	for _, path := range []string{"/q/" + id, "/q/" + id + "/result", "/q/" + unknown, "/q/" + unknown + "/result"} {
		resp, _ := g.Do(http.MethodGet, path, "")
		if got := resp.Header["Cache-Control"]; len(got) != 1 || got[0] != "no-store" {
			t.Errorf("%s: %s with Cache-Control %q", path, resp.Status, got)
		}
	}
}

// zip compresses text.
func zip(t *testing.T, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestResultContentEncoding(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("text ", 20_000)
	zipped := zip(t, text)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body := zipped
		switch r.URL.Path {
		case "/q/plain":
			body = []byte(text)
		case "/q/broken":
			body = zipped[10:]
			fallthrough
		default:
			w.Header().Set("Content-Encoding", r.Header.Get("X-Coding"))
		}
		w.Header().Set("Etag", `"1"`)
		_, _ = w.Write(body) // the gateway notices an error
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	for _, c := range []struct {
		path, coding, accept string
		decoded              bool
	}{
		{"/q", "gzip", "gzip", false}, {"/q", "gzip", "br, GZIP;q=0.5", false}, {"/q", "x-gzip", "gzip", false},
		{"/q", "gzip", "*", false}, {"/q", "gzip", "identity", true}, {"/q", "gzip", "br", true},
		{"/q", "gzip", "gzip;q=0, *", true}, {"/q", "rot13", "identity", false}, {"/q/broken", "gzip", "identity", false},
	} {
		id := accepted(t, g, c.path, "{}", "X-Coding", c.coding)
		reaches(t, g, c.path, id, task.Done)
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			resp, got := g.Do(method, c.path+"/"+id+"/result", "", "Accept-Encoding", c.accept)
			coding, etag := resp.Header.Get("Content-Encoding"), resp.Header.Get("Etag")
			if (coding == "") != c.decoded || (etag == `W/"1"`) != c.decoded || resp.Header.Get("Vary") != "Accept-Encoding" {
				t.Errorf("%s %s in %s for %q: %v", method, c.path, c.coding, c.accept, resp.Header)
			}
			if method == http.MethodGet && c.decoded != (got == text) {
				t.Errorf("%s in %s for %q: %d bytes", c.path, c.coding, c.accept, len(got))
			}
		}
	}
	id := accepted(t, g, "/q/plain", "{}")
	if resp, got := result(t, g, "/q/plain", id); got != text || resp.ContentLength != int64(len(text)) || resp.Header.Get("Vary") != "" {
		t.Errorf("a result without a coding has %d bytes and %v", len(got), resp.Header)
	}
}

func TestBodylessResultHasNoContentLength(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) })
	cert, key := certificate(t)
	secure := freeaddr.New(t)
	g := gatewaytest.Start(t, "", fmt.Sprintf("task_queue /q* q {\nreverse_proxy %s\n}\n}\nhttps://%s {\ntls %s %s\ntask_queue /q* q {\nreverse_proxy %s\n}", app, secure, cert, key, app))
	id := accepted(t, g, "/q", "{}")
	reaches(t, g, "/q", id, task.Done)
	client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + secure + "/q/" + id + "/result")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.StatusCode != http.StatusNotModified || resp.Header["Content-Length"] != nil {
		t.Errorf("over %s the result is %s with %v", resp.Proto, resp.Status, resp.Header)
	}
}

func TestUnrequestedUpgradeFails(t *testing.T) {
	t.Parallel()
	app := gatewaytest.ServeConns(t, func(conn net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			gatewaytest.Write(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
		}
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nroute /q* {\ntask_queue q {\nreverse_proxy "+app+"\n}\n}\nroute {\nreverse_proxy "+app+"\n}")
	resp, _ := g.Do(http.MethodPost, "/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL), "Content-Type", "application/json")
	if resp.StatusCode != http.StatusBadGateway {
		t.Errorf("the client got %s", resp.Status)
	}
	if c := rcv.Next(t); c.Status() != "FAILED" || !strings.HasPrefix(c.Body, "error=") {
		t.Errorf("the callback is %s %s", c.Status(), c.Body)
	}
	// A queue retries, so the verdict would take long.
	id := accepted(t, g, "/q", `{}`)
	gatewaytest.Eventually(t, "the task is to run again", func() error {
		doc, err := document(g, "/q", id)
		if err == nil && doc.NextAttemptAt.IsZero() {
			err = fmt.Errorf("it is %+v", doc)
		}
		return err
	})
}

func TestCanceledTasksAreCounted(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the server notices a disconnect only after this
		<-r.Context().Done()
	})
	g := gatewaytest.Start(t, "queue q {\nworkers 1\n}", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	a := adminAPI(t, g)
	running := accepted(t, g, "/q", "{}")
	reaches(t, g, "/q", running, task.Running)
	waiting, third := accepted(t, g, "/q", "{}"), accepted(t, g, "/q", "{}")
	if got := cancel(g, "/q", waiting); got != http.StatusAccepted {
		t.Fatalf("canceling: %d", got)
	}
	a.ask(http.MethodPost, "tasks/"+third+"/cancel", http.StatusAccepted, nil)
	a.ask(http.MethodPost, "tasks/cancel?state=running", http.StatusOK, nil)
	g.Metered(map[string]float64{`tasks_total{route="q",status="FAILED"}`: 3})
}

func TestUnreadResponseDoesNotChangeVerdict(t *testing.T) {
	t.Parallel()
	const size = 32 << 20 // more than the sockets buffer
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		_, _ = io.CopyN(w, zeros{}, size) // the gateway notices an error
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	// The response must be stalled for a while when the deadline passes.
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback {\ntimeout 8s\nmax_result 1KiB\n}\nreverse_proxy "+app)
	for _, path := range []string{"/length", "/chunked"} {
		body := fmt.Sprintf(`{"callback_url":%q}`, rcv.URL+path)
		conn, err := net.Dial("tcp", g.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, g.Addr, len(body), body)
	}
	for range 2 {
		if c := rcv.Next(t); c.Status() != "COMPLETE" || c.Header.Get("Callback-Truncated") != fmt.Sprint(size) {
			t.Errorf("%s: the callback is %s with %v", c.Path, c.Status(), c.Header)
		}
	}
}
