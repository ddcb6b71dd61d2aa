package callback

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func TestUnavailableStoreRefusesOnlyCallbacks(t *testing.T) {
	t.Parallel()
	app := &App{Delivery: new(Delivery)}
	if err := app.Delivery.provision(); err != nil {
		t.Fatal(err)
	}
	h := &Handler{Field: defaultField, MaxRequest: defaultMaxBody, app: app, log: zap.NewNop()}
	passed := 0
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		passed++
		return nil
	})
	for body, want := range map[string]int{
		`{"callback_url":"http://c.example/"}`: http.StatusServiceUnavailable,
		`{"callback_url":null}`:                http.StatusOK,
		`{}`:                                   http.StatusOK,
	} {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
		if w.Code != want {
			t.Errorf("%s: %d %s", body, w.Code, w.Body)
		}
		if want != http.StatusOK && (w.Header().Get("Retry-After") != "5" || w.Header().Get("Content-Type") != "application/problem+json") {
			t.Errorf("%s: %v %s", body, w.Header(), w.Body)
		}
	}
	if passed != 2 {
		t.Errorf("%d requests passed, not 2", passed)
	}
}
