// Package receivers tests the receivers of examples/receivers with callbacks of a
// real gateway.
//
// `go test` runs the receiver in Go. The variable RECEIVERS names others; the script
// .ci/suites/receivers sets it to every language of the machine:
//
//	RECEIVERS="go python shell" go test ./integration/receivers
package receivers

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }

// tests are the tests that every receiver must pass.
var tests = []struct {
	name string
	run  func(t *testing.T, p *process)
}{
	{"reads callbacks", readsCallbacks},
	{"repeated callback", finishesRepeatOnce},
	{"concurrent repeats", finishesConcurrentRepeatsOnce},
	{"forged callbacks", refusesForgedCallbacks},
	{"several signatures", acceptsOneOfSeveralSignatures},
	{"crash", finishesAfterCrash},
	{"empty key", refusesEmptyKey},
}

// TestReceivers tests the receivers that RECEIVERS names.
func TestReceivers(t *testing.T) {
	t.Parallel()
	asked := strings.Fields(os.Getenv("RECEIVERS"))
	if len(asked) == 0 {
		asked = []string{"go"}
	}
	for _, name := range asked {
		i := slices.IndexFunc(languages, func(l language) bool { return l.name == name })
		if i < 0 {
			t.Fatalf("RECEIVERS: no receiver is written in %s", name)
		}
		t.Run(name+" with "+languages[i].with, func(t *testing.T) {
			t.Parallel()
			built, command := build(t, languages[i])
			for _, test := range tests {
				t.Run(test.name, func(t *testing.T) { test.run(t, start(t, built, command)) })
			}
		})
	}
}

// large is the largest result that is posted whole.
var large = strings.Repeat("8 MiB of 100% +text+ über=alles&mehr\\n ", (8<<20)/40)[:8<<20-64]

// An answer is an endpoint's response and what the receiver must print.
type answer struct {
	name        string
	path        string
	status      int
	contentType string
	body        string
	head        string
	pairs       []string // each with its lines; nil for one pair that starts with error=
}

var answers = []answer{
	{"one pair", "/one", 200, "application/json", `{"response":"example response"}`, "is done", []string{"response=example response"}},
	{
		"many pairs of every kind", "/many", 200, "application/json",
		`{"Grüße, 世界":"🌍 \u0645\u0631\u062d\u0628\u0627","spaces":" a  b ","plus":"a+b","percent":"100% %41 %2B %zz",` +
			`"cut":"a&b=c;d","a b=c&d":"a name","empty":"","none":null,"lines":"one\ntwo\r\tthree","quotes":"\"'` + "`" + `$(id)\\x41\\n",` +
			`"html":"<script>alert(1)</script>","nested":{"list":[1,{"deep":"ä & b"}],"no":null},"number":12345678901234567890,` +
			`"again":"1","again":"2","dotted.name[0]":"x","float":1.0,"yes":true}`,
		"is done",
		[]string{
			"Grüße, 世界=🌍 \u0645\u0631\u062d\u0628\u0627", "spaces= a  b ", "plus=a+b", "percent=100% %41 %2B %zz",
			"cut=a&b=c;d", "a b=c&d=a name", "empty=", "none=", "lines=one\ntwo\r\tthree", "quotes=\"'`$(id)\\x41\\n",
			"html=<script>alert(1)</script>", `nested={"list":[1,{"deep":"ä & b"}],"no":null}`, "number=12345678901234567890",
			"again=1", "again=2", "dotted.name[0]=x", "float=1.0", "yes=true",
		},
	},
	{
		"form with odd encodings", "/form", 200, "application/x-www-form-urlencoded",
		"lower=%c3%a9&upper=%C3%A9&plus=a%2bb+c&alone&e=f=g&last=%26", "is done",
		[]string{"lower=é", "upper=é", "plus=a+b c", "alone=", "e=f=g", "last=&"},
	},
	{"text", "/text", 200, "text/plain", "naïve = 50% + tax\\n", "is done", []string{"response=naïve = 50% + tax\\n"}},
	{"empty result", "/empty", 204, "", "", "is done", []string{"response="}},
	{"8 MiB", "/large", 200, "text/plain", large, "is done", []string{"response=" + large}},
	{"failure with a reason", "/refused", 422, "application/json", `{"reason":"no such voice"}`, "has failed", []string{"reason=no such voice"}},
	{"broken response", "/broken", 0, "", "", "has failed", nil},
	{"timeout", "/slow", 0, "", "", "took too long", nil},
}

// app responds as listed in answers.
func app(w http.ResponseWriter, r *http.Request) {
	i := slices.IndexFunc(answers, func(a answer) bool { return a.path == r.URL.Path })
	switch a := answers[i]; {
	case a.path == "/slow":
		_, _ = io.Copy(io.Discard, r.Body) // before that, the server does not notice that the gateway disconnects
		<-r.Context().Done()
	case a.status == 0:
		panic(http.ErrAbortHandler)
	default:
		if a.contentType != "" {
			w.Header().Set("Content-Type", a.contentType)
		}
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}
}

// gateway starts a gateway in front of the app. It signs callbacks.
func gateway(t *testing.T) *gatewaytest.Gateway {
	t.Helper()
	addr := gatewaytest.NewApp(t, app)
	return gatewaytest.Start(t, gatewaytest.Delivering("secret "+key, "retry 100ms", "timeout 60s"), fmt.Sprintf(`
	handle /slow {
		callback {
			timeout 300ms
		}
		reverse_proxy %[1]s
	}
	handle {
		callback
		reverse_proxy %[1]s
	}`, addr))
}

func readsCallbacks(t *testing.T, p *process) {
	g := gateway(t)
	for _, a := range answers {
		t.Run(a.name, func(t *testing.T) {
			resp, _ := g.Post(a.path, fmt.Sprintf(`{"callback_url":"http://%s/hook"}`, p.addr))
			id := resp.Header.Get("beam-task-id")
			head, pairs := p.finished(id)
			if head != a.head {
				t.Errorf("the receiver printed that the task %.100q, want %q", head, a.head)
			}
			if a.pairs == nil {
				if len(pairs) != 1 || !strings.HasPrefix(pairs[0], "error=") {
					t.Errorf("the pairs are %.500q", pairs)
				}
				return
			}
			var want []string // receivers may print pairs in another order
			for _, pair := range a.pairs {
				want = append(want, strings.Split(pair, "\n")...)
			}
			slices.Sort(want)
			slices.Sort(pairs)
			if !slices.Equal(pairs, want) {
				t.Errorf("the pairs are\n%.2000q, not\n%.2000q", pairs, want)
			}
		})
	}
}

// finishesRepeatOnce makes the gateway deliver a callback repeatedly: the receiver's
// answers are lost on the way.
func finishesRepeatOnce(t *testing.T, p *process) {
	g := gateway(t)
	codes := make(chan int, 10)
	between := gatewaytest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, err := pass(p, r)
		if err != nil {
			t.Error(err)
		}
		codes <- code
		if r.Header.Get("callback-attempt") != "3" {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	between.Start()
	resp, _ := g.Post("/one", fmt.Sprintf(`{"callback_url":"%s/hook"}`, between.URL))
	id := resp.Header.Get("beam-task-id")
	if n := len(g.Attempted(id, 2)); n < 2 {
		t.Fatalf("%d attempts", n)
	}
	for range 2 {
		if code := <-codes; code != http.StatusNoContent {
			t.Errorf("the receiver answered %d", code)
		}
	}
	p.finished(id)
	// Callbacks are handled in order, so after a later one the repeats are handled.
	p.finished(p.later(g))
	if n := strings.Count(p.out.String(), "task "+id); n != 1 {
		t.Errorf("the task is finished %d times", n)
	}
}

// later waits until another task is finished.
func (p *process) later(g *gatewaytest.Gateway) string {
	p.t.Helper()
	resp, _ := g.Post("/one", fmt.Sprintf(`{"callback_url":"http://%s/hook"}`, p.addr))
	return resp.Header.Get("beam-task-id")
}

// pass forwards a callback to the receiver.
func pass(p *process, r *http.Request) (int, error) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+p.addr+r.URL.Path, r.Body)
	if err != nil {
		return 0, err
	}
	req.Header, req.ContentLength = r.Header.Clone(), r.ContentLength
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}
