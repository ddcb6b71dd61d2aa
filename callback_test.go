package callback

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/metrics"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/web"
)

func TestPlainRequestsDoNotAllocate(t *testing.T) {
	m, err := metrics.New(prometheus.NewRegistry(), new(web.NodeCounts))
	if err != nil {
		t.Fatal(err)
	}
	app := &App{metrics: m}
	fromBody := &Handler{Field: defaultField, MaxRequest: defaultMaxBody, app: app, log: zap.NewNop()}
	fromHeader := &Handler{Profile: profile.OpenFaaS, MaxRequest: defaultMaxBody, app: app, log: zap.NewNop()}
	if err := fromHeader.applyProfile(); err != nil {
		t.Fatal(err)
	}
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
	for name, r := range map[string]*http.Request{
		"a GET":                       httptest.NewRequest("GET", "/", nil),
		"an upload":                   httptest.NewRequest("POST", "/", strings.NewReader("text")),
		"an empty body":               httptest.NewRequest("POST", "/", http.NoBody),
		"a form":                      httptest.NewRequest("POST", "/", strings.NewReader("a=b")),
		"a HEAD":                      httptest.NewRequest("HEAD", "/", nil),
		"the ninth callback in a row": httptest.NewRequest("POST", "/", strings.NewReader(`{"callback_url":"http://c.example"}`)),
		"without a header, a body that names a URL": httptest.NewRequest("POST", "/", strings.NewReader(`{"callback_url":"http://c.example"}`)),
		"an empty header": httptest.NewRequest("POST", "/", strings.NewReader("text")),
	} {
		h := fromBody
		switch name {
		case "without a header, a body that names a URL":
			h = fromHeader
			r.Header.Set("Content-Type", "application/json")
		case "an empty header":
			h = fromHeader
			r.Header.Set("X-Callback-Url", "")
		case "a form":
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		case "the ninth callback in a row":
			r.Header.Set("Callback-Hop", "9")
			r.Header.Set("Content-Type", "application/json")
		case "an empty body":
			r.Header.Set("Content-Type", "application/json")
		}
		w := httptest.NewRecorder()
		body := r.Body
		if n := testing.AllocsPerRun(100, func() {
			if err := h.ServeHTTP(w, r, next); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if r.Body != body {
			t.Errorf("%s: the body was replaced", name)
		}
	}
}
