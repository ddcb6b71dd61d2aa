package integration

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// banner is the output of figlet for Hi.
const banner = " _   _ _ \n| | | (_)\n| |_| | |\n|  _  | |\n|_| |_|_|\n"

// curlData are the headers of `curl --data`.
var curlData = []string{"User-Agent", "curl/8.14.1", "Accept", "*/*", "Content-Type", "application/x-www-form-urlencoded"}

// figlet is a function that reports its requests.
func figlet(t *testing.T, got chan<- *http.Request) string {
	return gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != "Hi" {
			t.Errorf("the function got %q: %v", body, err)
		}
		got <- r
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Font", "standard")
		w.Header().Set("Webhook-Signature", "v1,forged")
		_, _ = io.WriteString(w, banner) // the gateway notices an error
	})
}

// wantFunction checks for a callback like those of OpenFaaS's queue worker.
func wantFunction(t *testing.T, got gatewaytest.Callback, id string, header map[string]string, body string) {
	t.Helper()
	if got.Body != body {
		t.Errorf("the body is %q, want %q", got.Body, body)
	}
	header["X-Call-Id"], header["Callback-Hop"], header["Beam-Task-Id"] = id, "1", ""
	for name, want := range header {
		if value := got.Header.Get(name); value != want {
			t.Errorf("%s is %q, want %q", name, value, want)
		}
	}
	if seconds, err := strconv.ParseFloat(got.Header.Get("X-Duration-Seconds"), 64); err != nil || seconds < 0 {
		t.Errorf("X-Duration-Seconds is %q", got.Header.Get("X-Duration-Seconds"))
	}
}

func TestOpenFaaSWaitingClient(t *testing.T) {
	t.Parallel()
	calls := make(chan *http.Request, 1)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback {\nprofile openfaas\n}\nreverse_proxy "+figlet(t, calls))
	resp, text := g.Do(http.MethodPost, "/function/figlet", "Hi", append(curlData, "X-Callback-Url", rcv.URL)...)
	id := resp.Header.Get("X-Call-Id")
	if resp.StatusCode != http.StatusOK || text != banner || id == "" || resp.Header.Get("Beam-Task-Id") != "" {
		t.Fatalf("the client got %s %v %q", resp.Status, resp.Header, text)
	}
	if r := <-calls; r.Header.Get("X-Call-Id") != id || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		t.Errorf("the function got %v", r.Header)
	}
	wantFunction(t, rcv.Next(t), id, map[string]string{
		"Content-Type": "text/plain; charset=utf-8", "X-Font": "standard", "Webhook-Signature": "",
		"X-Function-Status": "200", "X-Function-Name": "figlet", "X-Beam-Task-Status": "COMPLETE",
	}, banner)
	// Without the header, the request is not a task, even if the body names a URL.
	resp, _ = g.Do(http.MethodPost, "/function/figlet", "Hi", curlData...)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Call-Id") != "" {
		t.Errorf("without the header: %s %v", resp.Status, resp.Header)
	}
	<-calls
}

func TestOpenFaaSAsyncClient(t *testing.T) {
	t.Parallel()
	calls := make(chan *http.Request, 1)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `
	callback {
		profile openfaas
	}
	task_queue /async-function/* functions {
		profile openfaas
		reverse_proxy `+figlet(t, calls)+`
	}`)
	resp, text := g.Do(http.MethodPost, "/async-function/figlet?width=80", "Hi", append(curlData, "X-Callback-Url", rcv.URL)...)
	id := resp.Header.Get("X-Call-Id")
	if resp.StatusCode != http.StatusAccepted || text != "" || id == "" || resp.Header.Get("Location") != "/async-function/figlet/"+id {
		t.Fatalf("the client got %s %v %q", resp.Status, resp.Header, text)
	}
	if r := <-calls; r.URL.RequestURI() != "/function/figlet?width=80" || r.Header.Get("X-Call-Id") != id {
		t.Errorf("the function got %s %v", r.URL, r.Header)
	}
	wantFunction(t, rcv.Next(t), id, map[string]string{
		"Content-Type": "text/plain; charset=utf-8", "X-Font": "standard", "Webhook-Signature": "",
		"X-Function-Status": "200", "X-Function-Name": "figlet",
	}, banner)
	reaches(t, g, "/async-function/figlet", id, task.Done)

	// A request that wants no callback runs too.
	resp, _ = g.Do(http.MethodPost, "/async-function/figlet", "Hi", curlData...)
	r := <-calls
	if id = resp.Header.Get("X-Call-Id"); id == "" || r.Header.Get("X-Call-Id") != id || r.Header.Get("Beam-Task-Id") != "" {
		t.Errorf("without the header: %s %v; the function got %v", resp.Status, resp.Header, r.Header)
	}
	if doc := reaches(t, g, "/async-function/figlet", id, task.Done); doc.CallbackHost != "" {
		t.Errorf("without the header the callback is sent to %s", doc.CallbackHost)
	}
}

func TestOpenFaaSQueueWithoutCallback(t *testing.T) {
	t.Parallel()
	calls := make(chan *http.Request, 1)
	g := gatewaytest.Start(t, "", "task_queue /async-function/* functions {\nprofile openfaas\nreverse_proxy "+figlet(t, calls)+"\n}")
	resp, text := g.Do(http.MethodPost, "/async-function/figlet", "Hi", curlData...)
	id := resp.Header.Get("X-Call-Id")
	if resp.StatusCode != http.StatusAccepted || text != "" || id == "" {
		t.Fatalf("the client got %s %v %q", resp.Status, resp.Header, text)
	}
	if r := <-calls; r.URL.Path != "/function/figlet" || r.Header.Get("X-Call-Id") != id || r.Header.Get("Beam-Task-Id") != "" {
		t.Errorf("the function got %s %v", r.URL, r.Header)
	}
}

func TestOpenFaaSSchedule(t *testing.T) {
	t.Parallel()
	calls := make(chan *http.Request, 1)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case calls <- r:
		default: // a later run
		}
		fmt.Fprint(w, banner)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, "queue functions {\nschedule @every 1s {\nuri /async-function/report?all\nheader X-Callback-Url "+rcv.URL+"\n}\n}",
		"task_queue /async-function/* functions {\ncallback {\nprofile openfaas\n}\nreverse_proxy "+app+"\n}")
	got, r := rcv.Next(t), <-calls
	id := r.Header.Get("X-Call-Id")
	if r.URL.RequestURI() != "/function/report?all" || id == "" {
		t.Errorf("the function got %s %v", r.URL, r.Header)
	}
	for got.Header.Get("X-Call-Id") != id { // of a later run
		got = rcv.Next(t)
	}
	wantFunction(t, got, id, map[string]string{"X-Function-Name": "report", "X-Function-Status": "200"}, banner)
	g.Stop()
}

func TestOpenFaaSFailures(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/function/broken":
			w.Header().Set("Content-Type", "text/x-trace")
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, "<script>exit status 1")
		case "/function/slow":
			<-release
		default:
			panic(http.ErrAbortHandler)
		}
	})
	t.Cleanup(func() { close(release) }) // before the app waits for its requests
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback {\nprofile openfaas\ntimeout 10s\n}\nreverse_proxy "+app)
	for _, test := range []struct {
		function, status, verdict, contentType, body string
		client                                       int
	}{
		{"broken", "500", "FAILED", "text/x-trace", "<script>exit status 1", 500},
		{"gone", "503", "FAILED", "", "", 502},
		{"slow", "504", "TIMEOUT", "", "", 504},
	} {
		resp, _ := g.Do(http.MethodPost, "/function/"+test.function, "Hi", append(curlData, "X-Callback-Url", rcv.URL)...)
		if resp.StatusCode != test.client {
			t.Errorf("%s: the client got %s", test.function, resp.Status)
		}
		got := rcv.Next(t)
		wantFunction(t, got, got.Header.Get("X-Call-Id"), map[string]string{
			"X-Function-Status": test.status, "X-Function-Name": test.function,
			"X-Beam-Task-Status": test.verdict, "Content-Type": test.contentType,
		}, test.body)
	}
}

func TestURLInHeaderIsChecked(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) { calls.Add(1) })
	g := gatewaytest.Start(t, "", "callback {\nfrom header x-reply-to\n}\nreverse_proxy "+app)
	for name, test := range map[string]struct {
		header []string
		reason string
	}{
		"a private address":       {[]string{"X-Reply-To", "http://10.0.0.7/"}, "host 10.0.0.7 is a private address"},
		"another port":            {[]string{"X-Reply-To", "https://c.example:8443/"}, "port 8443 is not allowed"},
		"a scheme":                {[]string{"X-Reply-To", "ftp://c.example/"}, "not an http or https URL"},
		"a password":              {[]string{"X-Reply-To", "http://a:b@c.example/"}, "has a user name or password"},
		"no URL":                  {[]string{"X-Reply-To", "<script>"}, "not an http or https URL"},
		"bytes that are not text": {[]string{"X-Reply-To", "http://c.example/\xff"}, "has a control or invalid character"},
		"a long one":              {[]string{"X-Reply-To", "http://c.example/" + strings.Repeat("a", 2048)}, "longer than 2048 bytes"},
		"two of one name":         {[]string{"X-Reply-To", "http://c.example/", "X-Reply-To", "http://c.example/"}, "the header occurs twice"},
		"one of two empty":        {[]string{"X-Reply-To", "", "X-Reply-To", "http://c.example/"}, "the header occurs twice"},
	} {
		t.Run(name, func(t *testing.T) {
			resp, text := g.Do(http.MethodPost, "/", "Hi", test.header...)
			var doc struct{ Detail string }
			if err := json.Unmarshal([]byte(text), &doc); err != nil {
				t.Fatalf("%s %s", resp.Status, text)
			}
			if resp.StatusCode != http.StatusBadRequest || !strings.HasPrefix(doc.Detail, "x-reply-to: ") || !strings.Contains(doc.Detail, test.reason) {
				t.Errorf("%s %s", resp.Status, doc.Detail)
			}
		})
	}
	if calls.Load() != 0 {
		t.Errorf("the app was called %d times", calls.Load())
	}
}

func TestURLInHeaderAllowsAnyBody(t *testing.T) {
	t.Parallel()
	const length = 1 << 20
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `
	callback {
		profile openfaas
		max_request 1KiB
	}
	task_queue /async-function/* functions {
		callback {
			profile openfaas
			max_request 1KiB
		}
		reverse_proxy `+app+`
	}
	reverse_proxy `+app)
	body := strings.Repeat("\x00", length)
	resp, _ := g.Do(http.MethodPut, "/function/store", body, "X-Callback-Url", rcv.URL, "Content-Type", "application/octet-stream")
	if got := rcv.Next(t); resp.StatusCode != http.StatusOK || got.Body != fmt.Sprint(length, nil) {
		t.Errorf("%s; the callback is %q", resp.Status, got.Body)
	}
	// A queue keeps up to max_result of the body.
	resp, text := g.Do(http.MethodPost, "/async-function/store", body, "X-Callback-Url", rcv.URL)
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("the queue answered %s %s", resp.Status, text)
	}
}

// beamSigned verifies a callback as Beam's documentation describes, with the text of the
// key.
func beamSigned(secret string, got gatewaytest.Callback) bool {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write([]byte(base64.StdEncoding.EncodeToString([]byte(got.Body)) + ":" + got.Header.Get("X-Task-Timestamp")))
	return hex.EncodeToString(h.Sum(nil)) == got.Header.Get("X-Task-Signature")
}

func TestBeam2Receiver(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch r.URL.Path {
		case "/fail":
			w.WriteHeader(http.StatusInternalServerError)
		case "/gone":
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, `{"result": 10}`)
	})
	var tried atomic.Bool
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		if !tried.Swap(true) {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+hmacSecret+" "+otherSecret, "retry 1100ms"), "callback {\nprofile beam2\n}\nreverse_proxy "+app)
	before := time.Now().Unix()
	var first gatewaytest.Callback
	for _, test := range []struct{ path, status, body string }{
		{"/ok", "COMPLETE", `{"data":{"result":10}}`},
		{"/fail", "FAILED", `{"data":{"result":10}}`},
		{"/gone", "FAILED", `{"data":null,"error":"the endpoint gave no answer (502 Bad Gateway)"}`},
	} {
		resp, _ := g.Post(test.path, fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
		if first.Header == nil {
			first = rcv.Next(t)
		}
		got := rcv.Next(t)
		if got.Body != test.body || got.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %q %s", test.path, got.Header.Get("Content-Type"), got.Body)
		}
		if id := resp.Header.Get("X-Task-ID"); id == "" || got.Header.Get("X-Task-ID") != id || got.Header.Get("X-Task-Status") != test.status {
			t.Errorf("%s: the task is %q, the callback has the header %v", test.path, id, got.Header)
		}
		if !beamSigned(hmacSecret, got) || beamSigned(otherSecret, got) {
			t.Errorf("%s: the signature is not that of the first key", test.path)
		}
		if at, err := strconv.ParseInt(got.Header.Get("X-Task-Timestamp"), 10, 64); err != nil || at < before {
			t.Errorf("%s: the timestamp is %q", test.path, got.Header.Get("X-Task-Timestamp"))
		}
		if err := verified(hmacSecret, got); err != nil {
			t.Errorf("%s: Standard Webhooks' signature: %v", test.path, err)
		}
		if test.path != "/ok" {
			continue
		}
		if !beamSigned(hmacSecret, first) || first.Header.Get("X-Task-Timestamp") == got.Header.Get("X-Task-Timestamp") {
			t.Errorf("the second attempt has an old signature: %v %v", first.Header, got.Header)
		}
	}
}

// beamExample is the callback in docs/callback.md.
var beamExample = regexp.MustCompile(`(?s)X-Task-Timestamp: (\S+)\nX-Task-Signature: (\S+)\n\n(.+)\n$`)

func TestDocsBeamSignatureVerifies(t *testing.T) {
	t.Parallel()
	checked := 0
	for _, b := range blocks(t, "docs/callback.md") {
		if m := beamExample.FindStringSubmatch(b.text); m != nil {
			checked++
			got := gatewaytest.Callback{Header: http.Header{"X-Task-Timestamp": {m[1]}, "X-Task-Signature": {m[2]}}, Body: m[3]}
			if !beamSigned(hmacSecret, got) {
				t.Errorf("%v: it does not verify", b)
			}
		}
	}
	if checked != 1 {
		t.Errorf("%d examples were checked", checked)
	}
}

func TestAcceptedTaskKeepsProfile(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-release:
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, banner) })
	options := gatewaytest.Delivering(gatewaytest.ManyTimes)
	g := gatewaytest.Start(t, options, "callback {\nprofile openfaas\n}\nreverse_proxy "+app)
	resp, _ := g.Do(http.MethodPost, "/function/figlet", "Hi", "X-Callback-Url", rcv.URL)
	id := resp.Header.Get("X-Call-Id")
	rcv.Next(t)
	g.Configure(options, "callback {\nprofile beam2\n}\nreverse_proxy "+app)
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	close(release)
	g.Metered(map[string]float64{`deliveries_total{outcome="delivered"}`: 1}) // by the new generation
	for len(rcv.Got) > 0 {
		wantFunction(t, rcv.Next(t), id, map[string]string{"X-Function-Name": "figlet", "X-Function-Status": "200", "X-Task-Id": ""}, banner)
	}
}

func TestInboxReadsEveryProfile(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `handle /inbox* {
	callback_inbox
}
handle /beam2 {
	callback {
		profile beam2
	}
	respond ok
}
handle /openfaas {
	callback {
		profile openfaas
	}
	respond ok
}`)
	inbox := g.URL("/inbox/")
	for path, header := range map[string]string{"/beam2": "X-Task-Id", "/openfaas": "X-Call-Id"} {
		resp, text := g.Do(http.MethodPost, path, fmt.Sprintf(`{"callback_url":%q}`, inbox+path[1:]),
			"Content-Type", "application/json", "X-Callback-Url", inbox+path[1:])
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", resp.Status, text)
		}
		g.Eventually("the callback of "+path, func() error {
			got, err := inboxOf(t, g, "/inbox"+path)
			if err != nil || len(got) == 0 {
				return fmt.Errorf("%d callbacks: %v", len(got), err)
			}
			if id := resp.Header.Get(header); id == "" || got[0].TaskID != id || got[0].Status != "COMPLETE" {
				t.Errorf("the inbox has %s %s for the task %s", got[0].TaskID, got[0].Status, id)
			}
			return nil
		})
	}
}
