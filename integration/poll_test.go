package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// reply is one answer of a polledApp.
type reply struct {
	status int // 0 breaks the connection
	header [2]string
	body   string
}

// polledApp is an endpoint that answers later. It gives the replies of each path in order;
// the last one of a path is repeated.
type polledApp struct {
	addr string

	mu       sync.Mutex
	replies  map[string][]reply // by method and URI
	requests []*http.Request
}

func newPolledApp(t *testing.T, replies map[string][]reply) *polledApp {
	app := &polledApp{replies: replies}
	app.addr = gatewaytest.NewApp(t, app.serve)
	return app
}

func (a *polledApp) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, r)
	at := r.Method + " " + r.RequestURI
	left := a.replies[at]
	if len(left) == 0 {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	if len(left) > 1 {
		a.replies[at] = left[1:]
	}
	if left[0].status == 0 {
		panic(http.ErrAbortHandler)
	}
	if left[0].header[0] != "" {
		w.Header().Set(left[0].header[0], left[0].header[1])
	}
	w.WriteHeader(left[0].status)
	_, _ = w.Write([]byte(left[0].body))
}

// seen returns the requests of a method.
func (a *polledApp) seen(method string) (found []*http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.requests {
		if r.Method == method {
			found = append(found, r)
		}
	}
	return found
}

// polled returns a site with a polled queue q.
func polled(app, callback, options string) string {
	return "task_queue /q* q {\ncallback " + callback + "\npoll {\ninterval 10ms 20ms\n" + options + "\n}\nreverse_proxy " + app + "\n}"
}

// location is a reply 202 that names a location.
func location(url string) reply { return reply{202, [2]string{"Location", url}, "accepted"} }

func TestPolledAnswerDecidesVerdict(t *testing.T) {
	t.Parallel()
	const get = "GET /operations/1"
	ok := reply{status: 200, body: "the answer"}
	for name, tt := range map[string]struct {
		options string
		replies map[string][]reply
		status  string // of the callback
		body    string // in the callback
		posts   int
	}{
		"pending, then final": {
			"", map[string][]reply{"POST /q": {location("/operations/1")}, get: {{status: 202}, {status: 202}, ok}},
			"COMPLETE", "the answer", 1,
		},
		"an answer at once": {"", map[string][]reply{"POST /q": {ok}}, "COMPLETE", "the answer", 1},
		"a refusal at once": {"", map[string][]reply{"POST /q": {{status: 400, body: "bad"}}}, "FAILED", "bad", 1},
		"a relative location": {
			"", map[string][]reply{"POST /q": {location("q/1?a=b")}, "GET /q/1?a=b": {ok}}, "COMPLETE", "the answer", 1,
		},
		"a location that moves": {
			"", map[string][]reply{"POST /q": {location("/a")}, "GET /a": {location("/b")}, "GET /b": {ok}},
			"COMPLETE", "the answer", 1,
		},
		"another host that is named": {
			"hosts other.example", map[string][]reply{"POST /q": {location("https://Other.example:443/operations/1")}, get: {ok}},
			"COMPLETE", "the answer", 1,
		},
		"another host": {
			"hosts other.example", map[string][]reply{"POST /q": {location("http://169.254.169.254/latest")}},
			"FAILED", "the endpoint named a location that the gateway does not follow", 1,
		},
		"no location": {
			"", map[string][]reply{"POST /q": {{status: 202}}},
			"FAILED", "the endpoint accepted the request and named no location to poll", 1,
		},
		"errors that pass": {
			"", map[string][]reply{
				"POST /q": {{status: 503}, location("/operations/1")},
				get:       {{status: 503}, {}, {status: 429, header: [2]string{"Retry-After", "1"}}, ok},
			}, "COMPLETE", "the answer", 2,
		},
		"a poll that is refused": {
			"", map[string][]reply{"POST /q": {location("/operations/1")}, get: {{status: 404, body: "gone"}}}, "FAILED", "gone", 1,
		},
		"failed by its JSON": {
			"pending json state busy\nfailed json state broken",
			map[string][]reply{
				"POST /q": {location("/operations/1")},
				get:       {{status: 200, body: `{"state": "busy"}`}, {status: 200, body: `{"state": "broken"}`}},
			}, "FAILED", `{"state":"broken"}`, 1,
		},
		"a result elsewhere": {
			"pending json state busy\nlocation json links.self\nresult json links.result",
			map[string][]reply{
				"POST /q":        {{status: 200, body: `{"state": "busy", "links": {"self": "/operations/1"}}`}},
				get:              {{status: 200, body: `{"state": "ready", "links": {"result": "/results/1"}}`}},
				"GET /results/1": {{status: 500}, ok},
			}, "COMPLETE", "the answer", 1,
		},
		"a redirect to the result": {
			"result header Location",
			map[string][]reply{"POST /q": {location("/operations/1")}, get: {{303, [2]string{"Location", "/results/1"}, ""}}, "GET /results/1": {ok}},
			"COMPLETE", "the answer", 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, nil)
			app := newPolledApp(t, tt.replies)
			g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nqueue q {\nattempts 2\n}", polled(app.addr, rcv.URL+" {\nformat json\n}", tt.options))
			id := accepted(t, g, "/q", "{}")
			c := rcv.Next(t)
			if c.TaskID() != id || c.Status() != tt.status || !strings.Contains(strings.ReplaceAll(c.Body, `\"`, `"`), tt.body) {
				t.Errorf("the callback is %v %s", c.Header, c.Body)
			}
			if posts := app.seen(http.MethodPost); len(posts) != tt.posts {
				t.Errorf("%d requests, not %d", len(posts), tt.posts)
			}
			for _, r := range app.seen(http.MethodGet) {
				if r.Header.Get("beam-task-id") != id || r.ContentLength > 0 || r.Header.Get("Content-Type") != "" {
					t.Errorf("a poll has the header %v", r.Header)
				}
			}
			doc := reaches(t, g, "/q", id, task.Done)
			if doc.StartedAt.IsZero() || doc.StartedAt.After(doc.FinishedAt) || !doc.NextAttemptAt.IsZero() {
				t.Errorf("the task is %+v", doc)
			}
		})
	}
}

func TestPollSurvivesKill(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T, site string) (accepts *gatewaytest.Gateway, goesOn func() *gatewaytest.Gateway){
		"restart": func(t *testing.T, site string) (*gatewaytest.Gateway, func() *gatewaytest.Gateway) {
			g := gatewaytest.Start(t, gatewaytest.ToLocal+"\nqueue q {\nattempts 1\n}", site)
			return g, func() *gatewaytest.Gateway { g.Start(); return g }
		},
		"another gateway of a cluster": func(t *testing.T, site string) (*gatewaytest.Gateway, func() *gatewaytest.Gateway) {
			options := gatewaytest.StartCluster(t, 1).Options() + "\nqueue q {\nattempts 1\n}"
			return gatewaytest.Start(t, options, site), func() *gatewaytest.Gateway { return gatewaytest.Start(t, options, site) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			posts, polls := 0, 0
			inPoll, killed := make(chan struct{}), make(chan struct{})
			app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case r.Method == http.MethodPost:
					posts++
					w.Header().Set("Location", "/operations/1")
					w.WriteHeader(http.StatusAccepted)
				case polls == 1: // the second poll: the gateway dies in it
					polls++
					close(inPoll)
					<-r.Context().Done()
					close(killed)
				case polls < 4:
					polls++
					w.WriteHeader(http.StatusAccepted)
				default:
					_, _ = fmt.Fprint(w, "the answer")
				}
			})
			rcv := gatewaytest.NewReceiver(t, nil)
			g, goesOn := start(t, polled(app, rcv.URL+" {\nformat raw\n}", ""))
			id := accepted(t, g, "/q", "{}")
			<-inPoll
			g.Kill()
			<-killed
			g = goesOn()
			if c := rcv.Next(t); c.TaskID() != id || c.Status() != "COMPLETE" || c.Body != "the answer" {
				t.Errorf("the callback is %v %s", c.Header, c.Body)
			}
			reaches(t, g, "/q", id, task.Done)
			mu.Lock()
			defer mu.Unlock()
			if posts != 1 || polls != 4 {
				t.Errorf("%d requests and %d pending polls", posts, polls)
			}
		})
	}
}

func TestPollWaitSurvivesKill(t *testing.T) {
	t.Parallel()
	app := newPolledApp(t, map[string][]reply{
		"POST /q":           {location("/operations/1")},
		"GET /operations/1": {{status: 202, header: [2]string{"Retry-After", "3600"}}},
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, polled(app.addr, rcv.URL+" {\ntimeout 2h\n}", ""))
	id := accepted(t, g, "/q", "{}")
	soon := time.Now().Add(30 * time.Minute)
	var waits task.Task
	gatewaytest.Eventually(t, "the task waits for an hour", func() (err error) {
		if waits, err = document(g, "/q", id); err == nil && (waits.State != task.Queued || waits.NextAttemptAt.Before(soon)) {
			err = fmt.Errorf("it is %+v", waits)
		}
		return err
	})
	scrape(t, g, `caddy_callback_polls_total{outcome="pending",queue="q"} 1`, `caddy_callback_queue_starts_total{queue="q"} 1`,
		`caddy_callback_delayed_tasks{queue="q"} 1`, `caddy_callback_tasks{state="running"} 0`)
	g.Kill()
	g.Start()
	if after, err := document(g, "/q", id); err != nil || !after.NextAttemptAt.Equal(waits.NextAttemptAt) {
		t.Errorf("the waiting task became %+v: %v", after, err)
	}
	if status := cancel(g, "/q", id); status != http.StatusAccepted {
		t.Errorf("canceling: %d", status)
	}
	if c := rcv.Next(t); c.TaskID() != id || c.Body != "error=canceled" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	if polls := app.seen(http.MethodGet); len(polls) != 1 {
		t.Errorf("%d polls", len(polls))
	}
}

func TestPollEndsAtTimeout(t *testing.T) {
	t.Parallel()
	app := newPolledApp(t, map[string][]reply{"POST /q": {{202, [2]string{"Location", "/operations/1"}, ""}}, "GET /operations/1": {{status: 202, header: [2]string{"Retry-After", "3600"}}}})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, polled(app.addr, rcv.URL+" {\ntimeout 5s\n}", ""))
	id := accepted(t, g, "/q", "{}")
	if c := rcv.Next(t); c.TaskID() != id || c.Status() != "TIMEOUT" || c.Body != "error=the+endpoint+did+not+finish+within+5s" {
		t.Errorf("the callback is %v %s", c.Header, c.Body)
	}
	if doc := reaches(t, g, "/q", id, task.Done); doc.FinishedAt.Sub(doc.StartedAt) < 5*time.Second {
		t.Errorf("the timeout does not count from the start: %+v", doc)
	}
}

func TestPollKeepsOnlyNamedHeaders(t *testing.T) {
	t.Parallel()
	const secret, other = "Bearer-of-the-client", "cookie-of-the-client"
	for name, tt := range map[string]struct {
		options string
		kept    string
	}{
		"none":    {"", ""},
		"one":     {"keep_headers authorization", secret},
		"another": {"keep_headers Accept", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := newPolledApp(t, map[string][]reply{
				"POST /q": {location("/operations/1?sig=secret-of-the-location")},
				"GET /operations/1?sig=secret-of-the-location": {{status: 202, header: [2]string{"Retry-After", "3600"}}},
			})
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.ToLocal, polled(app.addr, rcv.URL+" {\ntimeout 2h\n}", tt.options))
			id := accepted(t, g, "/q", "{}", "Authorization", secret, "Cookie", other, "Accept", "text/plain")
			scrape(t, g, `caddy_callback_polls_total{outcome="pending",queue="q"} 1`)
			if post := app.seen(http.MethodPost)[0]; post.Header.Get("Authorization") != secret || post.Header.Get("Cookie") != other {
				t.Errorf("the request has the header %v", post.Header)
			}
			get := app.seen(http.MethodGet)[0]
			if get.Header.Get("Authorization") != tt.kept || get.Header.Get("Cookie") != "" {
				t.Errorf("the poll has the header %v", get.Header)
			}
			reaches(t, g, "/q", id, task.Queued)
			for _, path := range []string{"/callback/tasks/" + id, "/callback/tasks"} {
				resp, text, err := gatewaytest.Send(http.MethodGet, "http://"+g.Admin+path, nil)
				if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(text, id) {
					t.Fatalf("%s: %v %s %v", path, resp, text, err)
				}
				if strings.Contains(text, secret) || strings.Contains(text, other) || strings.Contains(text, "secret-of-the-location") {
					t.Errorf("operators see %s", text)
				}
			}
			if strings.Contains(g.Log.String(), secret) {
				t.Error("the log has the credentials")
			}
		})
	}
}
