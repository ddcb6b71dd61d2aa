package integration

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// result waits for a task's result.
func result(t *testing.T, g *gatewaytest.Gateway, path, id string) (*http.Response, string) {
	t.Helper()
	reaches(t, g, path, id, task.Done)
	return g.Do(http.MethodGet, path+"/"+id+"/result", "")
}

func TestTaskGetsAcceptedRequest(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"X-Seen", "X-Count", "X-Forwarded-Proto", "X-Forwarded-For"} {
			fmt.Fprintf(w, "%s: %s\n", name, strings.Join(r.Header[name], ","))
		}
	})
	g := gatewaytest.Start(t, "}\nservers {\ntrusted_proxies static private_ranges", `
	vars plan gold
	vars level 5
	request_header +X-Count 1
	task_queue /q* q {
		reverse_proxy `+app+` {
			header_up X-Seen "{http.request.orig_uri} {http.request.header.X-Mine} {http.vars.plan} {http.vars.level} {http.request.remote.host} {client_ip} {host} {method}"
		}
	}`)
	id := accepted(t, g, "/q", "{}", "X-Mine", "mine", "X-Forwarded-For", "203.0.113.7", "X-Forwarded-Proto", "https")
	_, text := result(t, g, "/q", id)
	want := "X-Seen: /q mine gold 5 127.0.0.1 203.0.113.7 127.0.0.1 POST\nX-Count: 1\n" +
		"X-Forwarded-Proto: https\nX-Forwarded-For: 203.0.113.7, 127.0.0.1\n"
	if text != want {
		t.Errorf("the app saw\n%s\nand not\n%s", text, want)
	}
}

// certificate writes a certificate for 127.0.0.1 and its key to files.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	borrowed := httptest.NewTLSServer(nil)
	defer borrowed.Close()
	pair := borrowed.TLS.Certificates[0]
	private, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		key:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestTaskKeepsTLS(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-Proto")+" "+r.Header.Get("X-Scheme"))
	})
	secure := freeaddr.New(t)
	cert, key := certificate(t)
	gatewaytest.Start(t, "", fmt.Sprintf(
		"respond no\n}\nhttps://%s {\ntls %s %s\ntask_queue q {\nreverse_proxy %s {\nheader_up X-Scheme {scheme}\n}\n}", secure, cert, key, app))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodPost, "https://"+secure+"/q", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Prefer", "wait=60")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != "https https" {
		t.Errorf("the app saw %q", text)
	}
}

func TestQueueBlockIsLikeHandle(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "part of it") // and fails
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `
	task_queue /q* q {
		callback `+rcv.URL+`
		@named header X-Kind named
		handle @named {
			header X-Block yes
			respond "named {header.X-Kind}" 201
		}
		handle /q/refused {
			error "no such thing" 404
		}
		handle /q/broken {
			reverse_proxy `+app+`
		}
		handle {
			respond other
		}
	}`)
	resp, text := result(t, g, "/q", accepted(t, g, "/q", "{}", "X-Kind", "named"))
	if resp.StatusCode != http.StatusCreated || text != "named named" || resp.Header.Get("X-Block") != "yes" {
		t.Errorf("the result is %s %v %s", resp.Status, resp.Header, text)
	}
	if c := rcv.Next(t); c.Status() != "COMPLETE" || c.Body != "response=named+named" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	if _, text := result(t, g, "/q", accepted(t, g, "/q", "{}")); text != "other" {
		t.Errorf("the result is %s", text)
	}
	rcv.Next(t)
	for path, want := range map[string]string{
		"/q/refused": "error=the+request+was+refused+%28404+Not+Found%29",
		"/q/broken":  "error=the+endpoint%27s+response+was+incomplete",
	} {
		id := accepted(t, g, path, "{}")
		if c := rcv.Next(t); c.TaskID() != id || c.Status() != "FAILED" || c.Body != want {
			t.Errorf("the callback of %s is %v %s", path, c.Header, c.Body)
		}
		if doc := reaches(t, g, path, id, task.Done); doc.Status != task.Failed || doc.Error == "" {
			t.Errorf("the task of %s is %+v", path, doc)
		}
	}
}

func TestLastAttemptIsDelivered(t *testing.T) {
	t.Parallel()
	runs := make(chan time.Time, 10)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		runs <- time.Now()
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "try %d", len(runs))
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nqueue q {\nattempts 2\n}", "task_queue /q* q {\ncallback "+rcv.URL+"\nreverse_proxy "+app+"\n}")
	id := accepted(t, g, "/q", "{}")
	c := rcv.Next(t)
	if c.Status() != "FAILED" || c.Body != "response=try+2" || c.Header.Get("callback-upstream-status") != "503" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	if resp, text := result(t, g, "/q", id); resp.StatusCode != http.StatusServiceUnavailable || text != "try 2" {
		t.Errorf("the result is %s %s", resp.Status, text)
	}
	if first, second := <-runs, <-runs; second.Sub(first) < time.Second {
		t.Errorf("the second attempt started %v after the first", second.Sub(first))
	}
}

func TestRequestBodyLimitOfSite(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", "request_body {\nmax_size 1000\n}\ntask_queue /q* q {\nrespond yes\n}")
	for name, body := range map[string]io.Reader{
		"of a known length": strings.NewReader(strings.Repeat("x", 1001)),
		"a chunked one":     io.MultiReader(strings.NewReader(strings.Repeat("x", 1001))),
	} {
		resp, text, err := gatewaytest.Send(http.MethodPost, g.URL("/q"), body)
		if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %v %v %s", name, err, resp, text)
		}
	}
}

func TestRefusedRequestIsNotStored(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, "", "task_queue /q* q {\ncallback {\nmax_request 1000\n}\nrespond yes\n}")
	for body, want := range map[string]int{
		`{"callback_url":"ftp://c.example"}`:                                   http.StatusBadRequest,
		fmt.Sprintf(`{"callback_url":%q}`, rcv.URL):                            http.StatusBadRequest, // a private address
		`{"callback_url":1}`:                                                   http.StatusBadRequest,
		`{"a":"` + strings.Repeat("x", 1000) + `"}`:                            http.StatusRequestEntityTooLarge,
		`{"callback_url":"http://c.example","a":"` + strings.Repeat("x", 1000): http.StatusRequestEntityTooLarge,
	} {
		for _, reader := range []io.Reader{strings.NewReader(body), io.MultiReader(strings.NewReader(body))} { // the second has no length
			resp, text, err := gatewaytest.Send(http.MethodPost, g.URL("/q"), reader, "Content-Type", "application/json")
			if err != nil || resp.StatusCode != want {
				t.Errorf("%.60s: %v %s, want %d", body, err, text, want)
			}
		}
	}
	accepted(t, g, "/q", `{"a":"`+strings.Repeat("x", 1000-len(`{"a":""}`))+`"}`) // exactly the limit
	if n := stored(t, g); n != 1 {
		t.Errorf("%d tasks are stored", n)
	}
}

// folderSize returns the size of the files in a folder.
func folderSize(t *testing.T, folder string) (size int64) {
	t.Helper()
	err := filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		size += info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// stored stops a gateway and counts the tasks in its store.
func stored(t *testing.T, g *gatewaytest.Gateway) (n int64) {
	t.Helper()
	g.Stop()
	e := g.OpenStore()
	defer g.CloseStore(e)
	stats, err := e.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, count := range stats.Tasks {
		n += count
	}
	return n
}

func TestLargeTaskIsRemovedWithResult(t *testing.T) {
	t.Parallel()
	mib := gatewaytest.Fewer(20)
	large := bytes.Repeat([]byte("0123456789abcdef"), mib<<16)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(body, large) {
			t.Errorf("the app got %d bytes: %v", len(body), err)
		}
		if r.URL.Path == "/q/large" {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = w.Write(body)
			return
		}
		_, _ = io.WriteString(w, "small")
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_queue /q* q {\ncallback "+rcv.URL+" {\nmax_request 64MiB\nmax_result 64MiB\n}\nreverse_proxy "+app+"\n}")
	for path, want := range map[string]string{"/q/small": "small", "/q/large": string(large)} {
		resp, text, err := gatewaytest.Send(http.MethodPost, g.URL(path), bytes.NewReader(large))
		if err != nil || resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%v %s", err, text)
		}
		id := resp.Header.Get("beam-task-id")
		if c := rcv.Next(t); c.TaskID() != id || c.Body != "response="+want {
			t.Errorf("the callback of %s is %v, %d bytes: %.100s", path, c.Header, len(c.Body), c.Body)
		}
		if resp, text := result(t, g, path, id); resp.StatusCode != http.StatusOK || text != want {
			t.Errorf("the result of %s is %s, %d bytes", path, resp.Status, len(text))
		}
	}
	// No request bodies remain.
	g.Stop()
	if used := folderSize(t, g.Folder()); used > int64(len(large))*3/2 {
		t.Errorf("%d bytes are stored; the only body is of %d", used, len(large))
	}
}

// pausing reads a body whose second half arrives late.
type pausing struct {
	*bytes.Reader
	pause time.Duration
}

func (p *pausing) Read(b []byte) (int, error) {
	if int64(p.Len()) <= p.Size()/2 && p.pause > 0 {
		gatewaytest.Pause(p.pause)
		p.pause = 0
	}
	return p.Reader.Read(b)
}

func TestSlowLargeBody(t *testing.T) {
	t.Parallel()
	const pause = 6 * time.Second                                                // longer than one step of the engine may take
	large := bytes.Repeat([]byte("0123456789abcdef"), gatewaytest.Fewer(32)<<16) // more than the sockets buffer
	var runs atomic.Int32
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		runs.Add(1)
		gatewaytest.Pause(pause)
		body, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(body, large) {
			t.Errorf("the app got %d bytes: %v", len(body), err)
		}
		_, _ = w.Write(body)
	})
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "task_queue /q* q {\ncallback "+gatewaytest.NewReceiver(t, nil).URL+" {\nmax_request 64MiB\nmax_result 64MiB\n}\nreverse_proxy "+app+"\n}")
	resp, text, err := gatewaytest.Send(http.MethodPost, g.URL("/q"), &pausing{bytes.NewReader(large), pause})
	if err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("%v %s", err, text)
	}
	id := resp.Header.Get("beam-task-id")
	if done := reaches(t, g, "/q", id, task.Done); done.Status != task.Complete || runs.Load() != 1 {
		t.Errorf("after %d runs the task is %+v", runs.Load(), done)
	}
	download, err := http.Get(g.URL("/q/" + id + "/result"))
	if err != nil {
		t.Fatal(err)
	}
	defer download.Body.Close()
	gatewaytest.Pause(pause)
	if got, err := io.ReadAll(download.Body); err != nil || !bytes.Equal(got, large) {
		t.Errorf("the client got %d bytes: %v", len(got), err)
	}
}

func TestTooLargeHeaderIsRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ before, after, body string }{
		"by the queue":         {"", "", "{}"},
		"after it was claimed": {"route {\ncallback\n", "\n}", `{"callback_url":"http://127.0.0.1:1/"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {})
			g := gatewaytest.Start(t, gatewaytest.ToLocal+"\n}\nservers {\nmax_header_size 1MB", test.before+"task_queue /q* q {\nreverse_proxy "+app+"\n}"+test.after)
			resp, text := g.Do(http.MethodPost, "/q", test.body, "Content-Type", "application/json", "X-Large", strings.Repeat("x", 200<<10))
			if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("it got %s: %s", resp.Status, text)
			}
			if left := adminAPI(t, g).all(""); len(left) > 0 {
				t.Errorf("files are left: %v", left)
			}
			reaches(t, g, "/q", accepted(t, g, "/q", "{}"), task.Done) // the queue still works
			var overview struct{ Rates map[string]float64 }
			adminAPI(t, g).ask(http.MethodGet, "overview", http.StatusOK, &overview)
			if n := math.Round(overview.Rates["accepted"] * 60); n != 1 {
				t.Errorf("%v tasks are counted as accepted, not 1", n)
			}
		})
	}
}

func TestResultWithLargeHeader(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Large", strings.Repeat("x", 100<<10))
		_, _ = io.WriteString(w, "ok")
	})
	g := gatewaytest.Start(t, "", "task_queue /q* q {\nreverse_proxy "+app+"\n}")
	if _, text := result(t, g, "/q", accepted(t, g, "/q", "{}")); text != "ok" {
		t.Errorf("the result is %s", text)
	}
}
