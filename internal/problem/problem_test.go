package problem_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/problem"
)

func TestWrite(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		err                    error
		status                 int
		retryAfter, connection string
	}{
		"a refusal":         {problem.New(http.StatusBadRequest, "no"), http.StatusBadRequest, "", ""},
		"a wrapped one":     {fmt.Errorf("accepting: %w", problem.New(http.StatusConflict, "no")), http.StatusConflict, "", ""},
		"a stalled body":    {problem.New(http.StatusRequestTimeout, "no"), http.StatusRequestTimeout, "", "close"},
		"unavailable store": {problem.New(http.StatusServiceUnavailable, "no"), http.StatusServiceUnavailable, "5", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := httptest.NewRecorder()
			if err := problem.Write(w, tt.err); err != nil {
				t.Fatal(err)
			}
			h := w.Header()
			if w.Code != tt.status || h.Get("Retry-After") != tt.retryAfter || h.Get("Connection") != tt.connection {
				t.Errorf("the response is %d %v", w.Code, h)
			}
			var doc map[string]any
			if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || h.Get("Content-Type") != "application/problem+json" {
				t.Fatalf("the document is %s (%s): %v", w.Body, h.Get("Content-Type"), err)
			}
			if doc["detail"] != "no" || doc["status"] != float64(tt.status) || doc["title"] != http.StatusText(tt.status) || doc["type"] != "about:blank" {
				t.Errorf("the document is %v", doc)
			}
		})
	}
}

func TestWriteReturnsOtherErrors(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	if err := problem.Write(w, engine.ErrFull); !errors.Is(err, engine.ErrFull) || w.Body.Len() > 0 {
		t.Errorf("it returned %v and wrote %q", err, w.Body)
	}
}

func TestWriteUnavailable(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]int{
		engine.ErrQuota:       http.StatusTooManyRequests,
		engine.ErrFull:        http.StatusServiceUnavailable,
		errors.New("unknown"): http.StatusServiceUnavailable,
	} {
		w := httptest.NewRecorder()
		if err := problem.WriteUnavailable(w, zap.NewNop(), err); err != nil {
			t.Fatal(err)
		}
		if w.Code != want || w.Header().Get("Retry-After") != "5" {
			t.Errorf("%v: %d %v", err, w.Code, w.Header())
		}
	}
}
