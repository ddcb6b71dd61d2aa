package callback

import (
	"errors"
	"net/http"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/problem"
)

func TestEngineErrorStatuses(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]int{
		engine.ErrQueueFull: http.StatusTooManyRequests,
		engine.ErrKeyReused: http.StatusUnprocessableEntity,
		engine.ErrTooLarge:  http.StatusRequestHeaderFieldsTooLarge,
	} {
		var p *problem.Problem
		if !errors.As(refusalOf(err, capture.NewBounded(nil, 1)), &p) || p.Status != want {
			t.Errorf("%v: %+v", err, p)
		}
	}
	if err := refusalOf(engine.ErrFull, capture.NewBounded(nil, 1)); !errors.Is(err, engine.ErrFull) {
		t.Errorf("a full store: %v", err)
	}
}
