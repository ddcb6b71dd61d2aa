package integration

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// arrival is a request as the app got it from the gateway.
type arrival struct {
	*http.Request
	body string
}

func (a arrival) task() string { return a.Header.Get("beam-task-id") }

// newRecorder starts an app that sends each request to a channel. It responds with
// answer or, if that is nil, with an empty 200.
func newRecorder(t *testing.T, answer http.HandlerFunc) (addr string, got chan arrival) {
	got = make(chan arrival, 1000)
	return gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		got <- arrival{r, string(body)}
		if answer != nil {
			answer(w, r)
		}
	}), got
}

func TestOnlyJSONBodiesBecomeTasks(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	for contentType, isTask := range map[string]bool{
		"application/json":                        true,
		"application/json; charset=utf-8":         true,
		"application/json ;charset=utf-8":         true,
		"APPLICATION/JSON":                        true,
		"application/problem+json":                true,
		"application/vnd.example.v1+JSON; q=1":    true,
		"":                                        false,
		"text/plain":                              false,
		"text/json":                               false,
		"application/jsonlines":                   false,
		"application/x-www-form-urlencoded":       false,
		"application/xml; note=application/json":  false,
		"multipart/form-data; boundary=json+json": false,
		"+json": false,
	} {
		t.Run(contentType, func(t *testing.T) {
			resp, _ := g.Do("POST", "/", `{"callback_url":"`+rcv.URL+`"}`, "Content-Type", contentType)
			id := resp.Header.Get("beam-task-id")
			if (id != "") != isTask {
				t.Fatalf("the client got task %q", id)
			}
			if seen := (<-got).task(); seen != id {
				t.Errorf("the app got task %q, the client %q", seen, id)
			}
			if isTask {
				if c := rcv.Next(t); c.TaskID() != id || c.Status() != "COMPLETE" {
					t.Errorf("the callback is of task %s, %s", c.TaskID(), c.Status())
				}
			}
		})
	}
}

func TestMemberNamesCallback(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	for name, c := range map[string]struct {
		body   string // $ is replaced by the receiver's URL
		isTask bool
	}{
		"last":                     {`{"prompt":"a","callback_url":"$"}`, true},
		"first":                    {`{"callback_url":"$","prompt":{"callback_url":5}}`, true},
		"a name with escapes":      {`{"callback\u005furl":"$"}`, true},
		"an escaped value":         {`{"callback_url":"$\/\u0061"}`, true},
		"odd whitespace":           {"\r\n\t {\n\"callback_url\"\t:\r\n \"$\" }\n\n", true},
		"null":                     {`{"callback_url":null}`, false},
		"empty":                    {`{"callback_url":""}`, false},
		"absent":                   {`{"prompt":"callback_url"}`, false},
		"another case":             {`{"Callback_URL":"$"}`, false},
		"a longer name":            {`{"callback_urls":"$","my_callback_url":"$"}`, false},
		"only nested":              {`{"a":{"callback_url":"$"},"b":[{"callback_url":"$"}]}`, false},
		"in an array":              {`[{"callback_url":"$"}]`, false},
		"in an array of pairs":     {`["callback_url","$"]`, false},
		"in a string":              {`"{\"callback_url\":\"$\"}"`, false},
		"a value, not a name":      {`{"a":"callback_url","$":1}`, false},
		"an empty object":          {`{}`, false},
		"an empty body":            {``, false},
		"not valid":                {`{"callback_url":"$"`, false},
		"invalid at the end":       {`{"callback_url":"$"} x`, false},
		"two documents":            {`{"callback_url":"$"}` + "\n" + `{"callback_url":"$"}`, false},
		"a trailing comma":         {`{"callback_url":"$",}`, false},
		"single quotes":            {`{'callback_url':'URL'}`, false},
		"a byte order mark":        {"\xef\xbb\xbf" + `{"callback_url":"$"}`, true},
		"twice in invalid JSON":    {`{"callback_url":"$","callback_url":"$"`, false},
		"a number in invalid JSON": {`{"callback_url":5`, false},
		"brackets without end":     {strings.Repeat("[", 3<<20) + `"callback_url"`, false},
		"objects without end":      {`{"callback_url":"$","a":` + strings.Repeat(`{"a":`, 1<<20), false},
		"other members twice":      {`{"a":1,"callback_url":"$","a":1,"":2,"":3}`, true},
		"bytes that are not UTF-8": {"{\"a\":\"\xff\xfe\",\"callback_url\":\"$\"}", true},
	} {
		t.Run(name, func(t *testing.T) {
			body := strings.ReplaceAll(c.body, "$", rcv.URL)
			resp, _ := g.Post("/", body)
			id := resp.Header.Get("beam-task-id")
			if resp.StatusCode != 200 || (id != "") != c.isTask {
				t.Fatalf("the client got %d, task %q", resp.StatusCode, id)
			}
			a := <-got
			if a.body != body {
				t.Errorf("the app got %d bytes, not those that were sent: %.80q", len(a.body), a.body)
			}
			if a.ContentLength != int64(len(body)) || a.task() != id {
				t.Errorf("the app got Content-Length %d, task %q", a.ContentLength, a.task())
			}
			if c.isTask && rcv.Next(t).TaskID() != id {
				t.Error("the callback is of another task")
			}
		})
	}
}

func TestOperatorURLMakesEveryRequestTask(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	own, named := gatewaytest.NewReceiver(t, nil), gatewaytest.NewReceiver(t, nil)
	// The operator's URL needs neither allow nor ports.
	g := gatewaytest.Start(t, "", "callback "+own.URL+"/own\nreverse_proxy "+app)
	for _, c := range []struct{ method, contentType, body string }{
		{"GET", "", ""},
		{"DELETE", "", ""},
		{"POST", "", ""},
		{"POST", "text/plain", "hello"},
		{"PUT", "application/json", `{"callback_url":null}`},
		{"POST", "application/json", `{not json`},
		{"POST", "application/json", ``},
		{"PURGE", "application/octet-stream", strings.Repeat("x", 9<<20)},
		{"POST", "application/json", `{"x":"` + strings.Repeat("x", 9<<20) + `"}`},
	} {
		resp, _ := g.Do(c.method, "/", c.body, "Content-Type", c.contentType)
		id := resp.Header.Get("beam-task-id")
		a := <-got
		if id == "" || a.task() != id || a.body != c.body {
			t.Errorf("%s %s: the client got task %q, the app %q and %d bytes", c.method, c.contentType, id, a.task(), len(a.body))
			continue
		}
		if cb := own.Next(t); cb.TaskID() != id {
			t.Errorf("%s %s: the callback is of task %s", c.method, c.contentType, cb.TaskID())
		}
	}
	for _, method := range []string{"HEAD", "OPTIONS"} {
		resp, _ := g.Do(method, "/", "")
		if id := resp.Header.Get("beam-task-id"); id != "" || (<-got).task() != "" {
			t.Errorf("%s is task %q", method, id)
		}
	}

	// The rules for clients apply to a URL in the request.
	resp, body := g.Post("/", `{"callback_url":"`+named.URL+`"}`)
	if resp.StatusCode != 400 {
		t.Errorf("a private URL in the request: %d %s", resp.StatusCode, body)
	}
}

func TestRequestURLOverridesOperatorURL(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, nil)
	own, named := gatewaytest.NewReceiver(t, nil), gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback "+own.URL+"\nreverse_proxy "+app)
	resp, _ := g.Post("/", `{"callback_url":"`+named.URL+`"}`)
	if id := resp.Header.Get("beam-task-id"); named.Next(t).TaskID() != id {
		t.Error("the callback is of another task")
	}
	// A callback to the operator's URL would arrive before this one.
	resp, _ = g.Post("/", `{}`)
	if id := resp.Header.Get("beam-task-id"); own.Next(t).TaskID() != id {
		t.Error("the operator's URL got a callback for the request's URL")
	}
}

func TestNestedCallbacksMakeOneTask(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nhandle {\ncallback "+rcv.URL+" {\nformat json\n}\nreverse_proxy "+app+"\n}")
	named, _ := g.Post("/", `{"callback_url":"`+rcv.URL+`"}`)
	if c := rcv.Next(t); c.TaskID() != named.Header.Get("beam-task-id") || c.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		t.Errorf("the callback of the first directive is %v", c.Header)
	}
	// If the request were two tasks, the second callback would arrive before this one.
	own, _ := g.Post("/", "{}")
	if c := rcv.Next(t); c.TaskID() != own.Header.Get("beam-task-id") || c.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the callback of the second directive is %v", c.Header)
	}
}

func TestNestedCallbacksBeforeQueueMakeOneTask(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `callback
handle {
	task_queue q {
		callback `+rcv.URL+` {
			format json
		}
		respond ran
	}
}`)
	for _, c := range []struct{ body, contentType string }{
		{`{"callback_url":"` + rcv.URL + `"}`, "application/json"},
		{"{}", "application/json"},
	} {
		accepted, _ := g.Post("/", c.body)
		got := rcv.Next(t)
		if got.TaskID() != accepted.Header.Get("beam-task-id") || got.Header.Get("Content-Type") != c.contentType || !strings.Contains(got.Body, "ran") {
			t.Errorf("%s: the callback is %v %s", c.body, got.Header, got.Body)
		}
	}
}

func TestCallbackInQueueBlockIsRefused(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", "respond before")
	g.Configure("", "task_queue q {\nhandle /x* {\ncallback\n}\n}")
	if err := g.Reload(); err == nil || !strings.Contains(err.Error(), "within the block of task_queue q") {
		t.Errorf("the reload returned %v", err)
	}
	if _, body := g.Post("/", "{}"); body != "before" {
		t.Errorf("after the refusal the gateway answers %q", body)
	}
}

func TestHeaderNamesAreConfigurable(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, func(w http.ResponseWriter, r *http.Request) {
		// The app echoes the ID of its task.
		w.Header().Set("X-Job", r.Header.Get("X-Job"))
		w.WriteHeader(201)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `callback {
		field hook
		task_header X-Job
		status_header X-Job-Status
		header X-Tenant {http.request.header.Tenant}
		header X-Where "{http.request.method} {http.request.uri.path}"
		header X-Tenant second
		header User-Agent mine
	}
	reverse_proxy `+app)
	resp, _ := g.Do("POST", "/train", `{"hook":"`+rcv.URL+`","callback_url":5}`,
		"Content-Type", "application/json", "X-Job", "forged", "X-Job", "forged twice", "Tenant", "acme\tinc")
	ids := resp.Header["X-Job"]
	if len(ids) != 1 || len(ids[0]) != 36 {
		t.Fatalf("the client got the task IDs %q", ids)
	}
	if seen := (<-got).Header["X-Job"]; fmt.Sprint(seen) != fmt.Sprint(ids) {
		t.Errorf("the app got task %q, the client %q", seen, ids)
	}
	h := rcv.Next(t).Header
	for name, want := range map[string]string{
		"X-Job":              ids[0],
		"X-Job-Status":       "COMPLETE",
		"X-Tenant":           "acme\tinc,second",
		"X-Where":            "POST /train",
		"User-Agent":         "mine",
		"Beam-Task-Id":       "",
		"X-Beam-Task-Status": "",
	} {
		if v := strings.Join(h[name], ","); v != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
}

func TestClientCannotChooseTaskID(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Beam-Task-Id", "the app's own")
		w.Header().Add("beam-task-id", "and another")
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	resp, _ := g.Do("POST", "/", `{"callback_url":"`+rcv.URL+`"}`,
		"Content-Type", "application/json", "Beam-Task-Id", "forged", "beam-task-id", "forged twice")
	ids := resp.Header["Beam-Task-Id"]
	if len(ids) != 1 || len(ids[0]) != 36 {
		t.Fatalf("the client got the task IDs %q", ids)
	}
	if seen := (<-got).Header["Beam-Task-Id"]; fmt.Sprint(seen) != fmt.Sprint(ids) {
		t.Errorf("the app got task %q, the client %q", seen, ids)
	}
	if id := rcv.Next(t).TaskID(); id != ids[0] {
		t.Errorf("the receiver got task %q, the client %q", id, ids)
	}
}
