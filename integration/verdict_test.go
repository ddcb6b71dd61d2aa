package integration

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// misbehave is a handler with the mistakes that handlers can make.
type misbehave struct {
	How string `json:"how"`
}

func init() {
	caddy.RegisterModule(misbehave{})
	httpcaddyfile.RegisterHandlerDirective("misbehave", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		var m misbehave
		h.Next()
		h.AllArgs(&m.How)
		return m, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("misbehave", httpcaddyfile.Before, "respond")
}

func (misbehave) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.misbehave", New: func() caddy.Module { return new(misbehave) }}
}

func (m misbehave) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	switch m.How {
	case "panic":
		panic("a handler's own fault")
	case "panic late":
		_, _ = io.WriteString(w, "some of it")
		panic("a handler's own fault")
	case "write too little":
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "some of it")
		return nil
	case "error":
		return errors.New("dialing 10.1.2.3: no")
	case "refuse":
		return caddyhttp.Error(http.StatusForbidden, errors.New("not from 10.1.2.3"))
	case "headers":
		w.Header()["X-Bad"] = []string{"a\nb"}
		w.Header()["X-Foo "] = []string{"bar"}
		w.Header().Set("X-Good", "yes")
		_, err := io.WriteString(w, "ok")
		return err
	case "outlast":
		<-r.Context().Done() // and respond nevertheless
		w.Header().Set("X-Late", "yes")
		w.WriteHeader(http.StatusAccepted)
		_, err := io.WriteString(w, "late")
		return err
	}
	return nil // without a response
}

// errorOf returns the error in a callback without a result.
func errorOf(t *testing.T, c gatewaytest.Callback) string {
	t.Helper()
	form, err := url.ParseQuery(c.Body)
	if err != nil || len(form) != 1 || form.Get("error") == "" {
		t.Fatalf("the callback is %s %q: it has no error", c.Status(), c.Body)
	}
	return form.Get("error")
}

func TestEndpointStatusDecidesVerdict(t *testing.T) {
	t.Parallel()
	const body = `{"detail":"as the app said","n":1.0}`
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		status, err := strconv.Atoi(r.URL.Path[1:])
		if err != nil {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	for status, verdict := range map[int]string{
		200: "COMPLETE", 201: "COMPLETE", 202: "COMPLETE", 204: "COMPLETE", 206: "COMPLETE", 299: "COMPLETE",
		301: "COMPLETE", 304: "COMPLETE", 307: "COMPLETE", 399: "COMPLETE",
		400: "FAILED", 401: "FAILED", 404: "FAILED", 429: "FAILED", 499: "FAILED",
		500: "FAILED", 502: "FAILED", 503: "FAILED", 504: "FAILED", 599: "FAILED",
	} {
		req := jsonRequest(t, g, rcv)
		req.URL.Path = fmt.Sprint("/", status)
		resp, err := http.DefaultTransport.RoundTrip(req) // does not follow redirects
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		want := "detail=as+the+app+said&n=1.0"
		if status == 204 || status == 304 {
			want = "response="
		} else if string(text) != body {
			t.Errorf("%d: the client got %q", status, text)
		}
		if err != nil || resp.StatusCode != status {
			t.Errorf("%d: the client got %d %v", status, resp.StatusCode, err)
		}
		c := rcv.Next(t)
		if c.TaskID() != resp.Header.Get("beam-task-id") || c.Status() != verdict || c.Body != want {
			t.Errorf("%d: the callback is of task %s, %s %q", status, c.TaskID(), c.Status(), c.Body)
		}
		if got := c.Header.Get("callback-upstream-status"); got != fmt.Sprint(status) {
			t.Errorf("%d: callback-upstream-status is %q", status, got)
		}
	}
}

func TestUnansweredRequestFails(t *testing.T) {
	t.Parallel()
	nobody := freeaddr.New(t)
	resets := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	sorry := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	for name, c := range map[string]struct {
		site   string
		status int
		error  string
	}{
		"refused connection":        {"reverse_proxy " + nobody, 502, "the endpoint gave no answer (502 Bad Gateway)"},
		"unknown host":              {"reverse_proxy nobody.invalid:80", 502, "the endpoint gave no answer (502 Bad Gateway)"},
		"closed connection":         {"reverse_proxy " + resets, 502, "the endpoint gave no answer (502 Bad Gateway)"},
		"a handler's error":         {"misbehave error", 500, "the endpoint gave no answer"},
		"a handler's refusal":       {"misbehave refuse", 403, "the request was refused (403 Forbidden)"},
		"Caddy's error handler":     {"error 503", 503, "the endpoint gave no answer (503 Service Unavailable)"},
		"answered by handle_errors": {"reverse_proxy " + nobody + "\nhandle_errors {\nreverse_proxy " + sorry + "\n}", 418, "the endpoint gave no answer (502 Bad Gateway)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\n"+c.site)
			resp, _ := g.Post("/", `{"callback_url":"`+rcv.URL+`"}`)
			id := resp.Header.Get("beam-task-id")
			if resp.StatusCode != c.status || id == "" {
				t.Errorf("the client got %s, task %q", resp.Status, id)
			}
			cb := rcv.Next(t)
			if message := errorOf(t, cb); message != c.error {
				t.Errorf("error=%s", message)
			}
			if cb.TaskID() != id || cb.Status() != "FAILED" || cb.Header.Get("callback-upstream-status") != "" {
				t.Errorf("the callback is of task %s, %s, after %q", cb.TaskID(), cb.Status(), cb.Header.Get("callback-upstream-status"))
			}
		})
	}
}

func TestBrokenResponseFails(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/announced" {
			w.Header().Set("Content-Length", "1000000")
		}
		_, _ = io.WriteString(w, "some of it")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	for name, c := range map[string]struct{ path, site string }{
		"a chunked body":    {"/chunked", "reverse_proxy " + app},
		"of a known length": {"/announced", "reverse_proxy " + app},
		"by a panic":        {"/", "misbehave \"panic late\""},
		"by a short body":   {"/", "misbehave \"write too little\""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\n"+c.site)
			req := jsonRequest(t, g, rcv)
			req.URL.Path = c.path
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err == nil {
				defer resp.Body.Close()
				if text, err := io.ReadAll(resp.Body); err == nil {
					t.Errorf("the client took %q for the whole", text)
				}
			}
			cb := rcv.Next(t)
			if message := errorOf(t, cb); message != "the endpoint's response was incomplete" || cb.Status() != "FAILED" {
				t.Errorf("the callback is %s, error=%s", cb.Status(), message)
			}
			if got := cb.Header.Get("callback-upstream-status"); got != "200" {
				t.Errorf("callback-upstream-status is %q", got)
			}
		})
	}
}

func TestPanicFailsTask(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nmisbehave panic")
	if resp, err := http.DefaultTransport.RoundTrip(jsonRequest(t, g, rcv)); err == nil {
		t.Errorf("the client got %s", resp.Status)
	}
	c := rcv.Next(t)
	if message := errorOf(t, c); message != "the endpoint gave no answer" || c.Status() != "FAILED" {
		t.Errorf("the callback is %s, error=%s", c.Status(), message)
	}
	g.Eventually("the log has the panic and its stack", func() error {
		if log := g.Log.String(); !strings.Contains(log, "a handler's own fault") || !strings.Contains(log, "misbehave.ServeHTTP") {
			return errors.New("it is not there")
		}
		return nil
	})
}

func TestEmptyResponseIsComplete(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nmisbehave")
	resp, text := g.Post("/", `{"callback_url":"`+rcv.URL+`"}`)
	if resp.StatusCode != 200 || text != "" || resp.Header.Get("beam-task-id") == "" {
		t.Errorf("the client got %s %q, task %q", resp.Status, text, resp.Header.Get("beam-task-id"))
	}
	if c := rcv.Next(t); c.Status() != "COMPLETE" || c.Body != "response=" || c.Header.Get("callback-upstream-status") != "200" {
		t.Errorf("the callback is %s %q after %s", c.Status(), c.Body, c.Header.Get("callback-upstream-status"))
	}
}

func TestTaskTimeout(t *testing.T) {
	t.Parallel()
	canceled := make(chan struct{}, 2)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		canceled <- struct{}{}
	})
	for name, site := range map[string]string{
		"canceled endpoint":     "reverse_proxy " + app,
		"late endpoint":         "misbehave outlast",
		"endpoint with retries": "reverse_proxy " + app + " {\nlb_retries 5\nlb_retry_match {\nmethod POST\n}\n}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.ToLocal, "header X-Before yes\nhandle /fence {\ncallback\nrespond ok\n}\nhandle {\ncallback {\ntimeout 3s\n}\n"+site+"\n}")
			resp, text := g.Post("/", `{"callback_url":"`+rcv.URL+`"}`)
			id := resp.Header.Get("beam-task-id")
			if resp.StatusCode != 504 || text != "" || id == "" || resp.Header.Get("X-Late") != "" || resp.Header.Get("X-Before") != "yes" {
				t.Errorf("the client got %s %q, task %q, with %v", resp.Status, text, id, resp.Header)
			}
			if !strings.Contains(site, "outlast") {
				<-canceled
			}
			cb := rcv.Next(t)
			if message := errorOf(t, cb); message != "the endpoint did not finish within 3s" {
				t.Errorf("error=%s", message)
			}
			if cb.TaskID() != id || cb.Status() != "TIMEOUT" || cb.Header.Get("callback-upstream-status") != "" {
				t.Errorf("the callback is of task %s, %s, after %q", cb.TaskID(), cb.Status(), cb.Header.Get("callback-upstream-status"))
			}
			// A late response has no callback: it would arrive before that of the next
			// task.
			resp, _ = g.Post("/fence", `{"callback_url":"`+rcv.URL+`"}`)
			if cb := rcv.Next(t); cb.TaskID() != resp.Header.Get("beam-task-id") || cb.Status() != "COMPLETE" {
				t.Errorf("unexpected callback: task %s, %s %q", cb.TaskID(), cb.Status(), cb.Body)
			}
		})
	}
}

func TestStreamTimeout(t *testing.T) {
	t.Parallel()
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(proto, func(t *testing.T) {
			t.Parallel()
			canceled := make(chan struct{})
			app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				var err error
				for err == nil {
					if _, err = io.WriteString(w, "more and "); err == nil {
						err = http.NewResponseController(w).Flush()
					}
					select {
					case <-r.Context().Done():
						err = r.Context().Err()
					case <-time.After(10 * time.Millisecond): // the pace of a stream
					}
				}
				close(canceled)
			})
			rcv := gatewaytest.NewReceiver(t, nil)
			g, client := startH2C(t, gatewaytest.ToLocal, "callback {\ntimeout 5s\n}\nreverse_proxy "+app)
			if proto == "HTTP/1.1" {
				client = http.DefaultClient
			}
			resp, err := client.Do(jsonRequest(t, g, rcv))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text := make([]byte, len("more and "))
			if _, err := io.ReadFull(resp.Body, text); err != nil || string(text) != "more and " {
				t.Errorf("the client got %q, %v", text, err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err == nil {
				t.Error("the client got a complete response")
			}
			<-canceled
			cb := rcv.Next(t)
			if message := errorOf(t, cb); cb.Status() != "TIMEOUT" || message != "the endpoint did not finish within 5s" {
				t.Errorf("the callback is %s, error=%s", cb.Status(), message)
			}
			if got := cb.Header.Get("callback-upstream-status"); got != "200" {
				t.Errorf("callback-upstream-status is %q", got)
			}
		})
	}
}
