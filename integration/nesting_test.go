package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// nesting is a site, a request to it, and the expected response and callback. The
// request's body names the receiver, with the site's name as the path.
type nesting struct {
	name, site     string
	path           string   // of the request; empty: /
	header         []string // pairs of names and values
	status         int
	body           string            // a part of the response
	callback       string            // the body of the callback; empty: no callback
	callbackHeader map[string]string // an empty value: the header must be missing
	noTask         bool              // the response has no task ID
}

var nestings = []nesting{
	{name: "error-page", site: "callback\nerror no 500\nhandle_errors {\nrespond page 500\n}",
		status: 500, body: "page", callback: "error=the+endpoint+gave+no+answer+%28500+Internal+Server+Error%29"},
	{name: "templates", site: "templates\ncallback\nheader Content-Type text/html\nrespond `{{1}}-rendered`",
		status: 200, body: "1-rendered", callback: "response=1-rendered"},
	{name: "intercept", site: "callback\nrespond raw 500\nintercept {\n@bad status 500\nhandle_response @bad {\nrespond sorry 503\n}\n}",
		status: 503, body: "sorry", callback: "response=sorry"},
	{name: "encode", site: "encode gzip\ncallback\nrespond " + strings.Repeat("x", 1000),
		status: 200, body: "xxx", callback: "response=" + strings.Repeat("x", 1000)},
	{name: "encode-with-header", site: "encode gzip\ncallback {\nprofile openfaas\n}\nheader Etag `\"1\"`\nrespond " + strings.Repeat("y", 1000),
		header: []string{"X-Callback-Url", "%RECEIVER%/encode-with-header"}, status: 200, body: "yyy", noTask: true,
		callback: strings.Repeat("y", 1000), callbackHeader: map[string]string{"Content-Encoding": "", "Etag": `"1"`, "Vary": ""}},
	{name: "handle", site: "callback\nhandle {\ntemplates\nheader Content-Type text/html\nrespond `{{2}}-rendered`\n}",
		status: 200, body: "2-rendered", callback: "response=2-rendered"},
	{name: "route", site: "route {\ncallback\nintercept {\nreplace_status 203\n}\nrespond ok\n}",
		status: 203, body: "ok", callback: "response=ok"},
	{name: "callback-twice", site: "callback\nroute {\ncallback {\nformat raw\n}\nrespond ok\n}",
		status: 200, body: "ok", callback: "response=ok"},
	{name: "header-of-a-body", site: "header -X-Secret\nheader X-Added yes\ncallback {\nprofile openfaas\n}\nroute {\nheader X-Secret hidden\nrespond ok\n}",
		header: []string{"X-Callback-Url", "%RECEIVER%/header-of-a-body"},
		status: 200, body: "ok", callback: "ok", callbackHeader: map[string]string{"X-Added": "yes", "X-Secret": ""}, noTask: true},
	{name: "header-of-no-body", site: "header -X-Secret\nheader X-Added yes\ncallback {\nprofile openfaas\n}\nroute {\nheader X-Secret hidden\nheader X-Own 1\nrespond 204\n}",
		header: []string{"X-Callback-Url", "%RECEIVER%/header-of-no-body"},
		status: 204, callback: "-", callbackHeader: map[string]string{"X-Added": "yes", "X-Secret": "", "X-Own": "1"}, noTask: true},

	{name: "queue", site: "callback\nrespond direct\ntask_queue /q queue {\nrespond queued\n}", path: "/q",
		status: 202, callback: "response=queued"},
	{name: "below-the-path", site: "respond direct\ntask_queue /q below {\nrespond queued\n}", path: "/q/gpu",
		status: 202, callback: "response=queued"},
	{name: "beside-the-path", site: "respond direct\ntask_queue /q beside {\nrespond queued\n}", path: "/quite",
		status: 200, body: "direct", noTask: true},
	{name: "beside-the-queue", site: "callback\nrespond direct\ntask_queue /q other {\nrespond queued\n}",
		status: 200, body: "direct", callback: "response=direct"},
	{name: "queue-with-templates", site: "encode gzip\ntemplates\ntask_queue templates {\ntemplates\nheader Content-Type text/html\nrespond `{{3}}-rendered`\n}",
		status: 202, callback: "response=3-rendered"},
	{name: "queue-with-error-page", site: "task_queue errors {\nerror no 500\n}\nhandle_errors {\nrespond page 500\n}",
		status: 202, callback: "error=the+endpoint+gave+no+answer+%28500+Internal+Server+Error%29"},
	{name: "queue-with-header", site: "header -X-Secret\ntask_queue headers {\ncallback {\nprofile openfaas\n}\nheader X-Own 1\nrespond ok\n}",
		header: []string{"X-Callback-Url", "%RECEIVER%/queue-with-header"},
		status: 202, callback: "ok", callbackHeader: map[string]string{"X-Own": "1"}, noTask: true},
	{name: "own-options", site: "task_queue own {\ncallback {\nformat raw\nheader X-From queue\n}\nrespond ok\n}",
		status: 202, callback: "ok", callbackHeader: map[string]string{"X-From": "queue"}},
	{name: "taken-over", site: "callback {\nformat raw\nheader X-From outer\n}\nhandle {\ntask_queue taken {\nrespond ok\n}\n}",
		status: 202, callback: "ok", callbackHeader: map[string]string{"X-From": "outer"}},
	{name: "own-options-win", site: "callback {\nformat json\nheader X-From outer\n}\nhandle {\nroute {\ntask_queue win {\ncallback {\nformat raw\n}\nrespond ok\n}\n}\n}",
		status: 202, callback: "ok", callbackHeader: map[string]string{"X-From": "outer"}},
	{name: "own-header-wins", site: "callback {\nformat raw\nheader X-From outer\n}\nhandle {\ntask_queue header {\ncallback {\nheader X-From queue\n}\nrespond ok\n}\n}",
		status: 202, callback: "ok", callbackHeader: map[string]string{"X-From": "queue"}},
	{name: "own-member-wins", site: "callback\nhandle {\ntask_queue member {\ncallback {\nfield other\n}\nrespond ok\n}\n}", status: 202},
	{name: "off", site: "task_queue off {\ncallback off\nrespond ok\n}", status: 202},
	{name: "off-in-a-handle", site: "callback\nhandle {\ntask_queue offhandle {\ncallback off\nrespond ok\n}\n}", status: 202},
	{name: "refused", site: "callback\nhandle {\ntask_queue refused {\nrespond ok\n}\n}",
		header: []string{"Idempotency-Key", "1", "Idempotency-Key", "2"}, status: 400, body: "twice", noTask: true},
	{name: "too-large", site: "callback\nhandle {\ntask_queue large {\ncallback {\nmax_request 10\n}\nrespond ok\n}\n}",
		status: 413, body: "limited to 10 bytes", noTask: true},
	{name: "refused-by-the-queue-alone", site: "task_queue alone {\ncallback {\nmax_request 10\n}\nrespond ok\n}",
		status: 413, body: "limited to 10 bytes", noTask: true},
}

// TestCallbackMatchesClientResponse sends a request to each nesting of the directives.
func TestCallbackMatchesClientResponse(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, "", "")
	_, port, err := net.SplitHostPort(g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	var sites strings.Builder
	sites.WriteString("respond ok\n")
	for _, n := range nestings {
		fmt.Fprintf(&sites, "}\nhttp://%s.test:%s {\n%s\n", n.name, port, n.site)
	}
	g.Configure(gatewaytest.ToLocal, sites.String())
	g.Start()
	ids := make(map[string]string)
	for _, n := range nestings {
		if n.status == 0 {
			continue
		}
		resp, text := n.send(t, g, rcv.URL)
		id := resp.Header.Get("beam-task-id")
		if resp.StatusCode != n.status || !strings.Contains(text, n.body) || resp.Header.Get("X-Secret") != "" {
			t.Errorf("%s: the client got %s %v %s", n.name, resp.Status, resp.Header, text)
		}
		var doc struct {
			ID string `json:"task_id"`
		}
		if n.status == http.StatusAccepted && !n.noTask && (json.Unmarshal([]byte(text), &doc) != nil || doc.ID != id) {
			t.Errorf("%s: the header names the task %s, the body is %s", n.name, id, text)
		}
		if wants := n.callback != "" && !n.noTask || n.status == http.StatusAccepted && !n.noTask; wants != (id != "") {
			t.Errorf("%s: the response names the task %q", n.name, id)
		}
		ids[n.name] = id
	}
	got := make(map[string]gatewaytest.Callback)
	for _, n := range nestings {
		if n.callback == "" {
			continue
		}
		for len(got[n.name].Path) == 0 {
			c := rcv.Next(t)
			name := strings.TrimPrefix(c.Path, "/")
			if _, twice := got[name]; twice {
				t.Errorf("%s: second callback: %s", name, c.Body)
			}
			got[name] = c
		}
		c := got[n.name]
		if want := strings.TrimPrefix(n.callback, "-"); c.Body != want || ids[n.name] != "" && c.TaskID() != ids[n.name] {
			t.Errorf("%s: the callback is %v %s", n.name, c.Header, c.Body)
		}
		for name, want := range n.callbackHeader {
			if c.Header.Get(name) != want {
				t.Errorf("%s: the callback's %s is %q, want %q", n.name, name, c.Header.Get(name), want)
			}
		}
	}
	for _, n := range nestings {
		if c, ok := got[n.name]; ok && n.callback == "" {
			t.Errorf("%s: unexpected callback: %v %s", n.name, c.Header, c.Body)
		}
	}
}

// send sends the request to the site.
func (n nesting) send(t *testing.T, g *gatewaytest.Gateway, receiver string) (*http.Response, string) {
	t.Helper()
	path := n.path
	if path == "" {
		path = "/"
	}
	body := fmt.Sprintf(`{"callback_url":"%s/%s"}`, receiver, n.name)
	r, err := http.NewRequest(http.MethodPost, g.URL(path), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = n.name + ".test"
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(n.header); i += 2 {
		r.Header.Add(n.header[i], strings.ReplaceAll(n.header[i+1], "%RECEIVER%", receiver))
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func TestQueueTakesOverTaskOfOuterCallback(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback "+rcv.URL+"\nhandle {\ntask_queue q {\nrespond ok\n}\n}")
	post := func(body, key string) (*http.Response, string) {
		return g.Do(http.MethodPost, "/q", body, "Content-Type", "application/json", "Idempotency-Key", key)
	}
	first, _ := post("{}", "one")
	id := first.Header.Get("beam-task-id")
	if c := rcv.Next(t); first.StatusCode != http.StatusAccepted || c.TaskID() != id {
		t.Fatalf("%s: the task is %s, the callback is of %s", first.Status, id, c.TaskID())
	}
	for name, c := range map[string]struct {
		send   func() (*http.Response, string)
		status int
		task   string
	}{
		"a look-up":             {func() (*http.Response, string) { return g.Do(http.MethodGet, "/q/"+id, "") }, 200, ""},
		"a result":              {func() (*http.Response, string) { return g.Do(http.MethodGet, "/q/"+id+"/result", "") }, 200, id},
		"no such task":          {func() (*http.Response, string) { return g.Do(http.MethodGet, "/q/"+strings.Repeat("0", 8)+id[8:], "") }, 404, ""},
		"a known key":           {func() (*http.Response, string) { return post("{}", "one") }, 202, id},
		"a key of another body": {func() (*http.Response, string) { return post("[]", "one") }, 422, ""},
	} {
		resp, text := c.send()
		if resp.StatusCode != c.status || resp.Header.Get("beam-task-id") != c.task {
			t.Errorf("%s: %s for the task %q: %s", name, resp.Status, resp.Header.Get("beam-task-id"), text)
		}
	}
	last, _ := post("{}", "two")
	// Callbacks of leftover tasks would have arrived before this one.
	if c := rcv.Next(t); c.TaskID() != last.Header.Get("beam-task-id") {
		t.Errorf("unexpected callback of the task %s", c.TaskID())
	}
	g.Metered(map[string]float64{`tasks{state="running"}`: 0, `tasks{state="done"}`: 2})
}

// A crash right after a queue's refusal causes no callback, because the request was never
// a task.
func TestKilledGatewaySendsNoCallbackForRefusedRequest(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the server notices a disconnect only after it has read the body
		<-r.Context().Done()
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	options, site := gatewaytest.ToLocal+"\nqueue q {\nworkers 1\nmax_queued 1\n}", "task_queue /q q {\ncallback "+rcv.URL+"\nreverse_proxy %s\n}"
	g := gatewaytest.Start(t, options, fmt.Sprintf(site, app))
	accepted := make(map[string]bool)
	refused := 0
	for refused < 20 {
		switch resp, text := g.Post("/q", "{}"); resp.StatusCode {
		case http.StatusAccepted:
			accepted[resp.Header.Get("beam-task-id")] = true
		case http.StatusTooManyRequests:
			if refused++; resp.Header.Get("beam-task-id") != "" {
				t.Errorf("the refusal names the task %s", resp.Header.Get("beam-task-id"))
			}
		default:
			t.Fatalf("%s: %s", resp.Status, text)
		}
	}
	g.Kill()
	g.Configure(options, "task_queue /q q {\ncallback "+rcv.URL+"\nrespond ok\n}")
	g.Start()
	for range len(accepted) {
		if c := rcv.Next(t); !accepted[c.TaskID()] || c.Status() != "COMPLETE" {
			t.Errorf("unexpected callback of the task %s: %s %s", c.TaskID(), c.Status(), c.Body)
		}
	}
	g.Metered(map[string]float64{`tasks{state="done"}`: float64(len(accepted)), `tasks{state="delivering"}`: 0})
}
