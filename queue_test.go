package callback

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/header"
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

func TestDelayTakesDays(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"1.5d": 36 * time.Hour, "30d": 30 * 24 * time.Hour, strings.Repeat("9", 400) + "d": 0, "NaNd": 0, "Infd": 0,
	} {
		got, err := header.StartTime(http.Header{"Task-Delay": {value}}, now, defaultMaxDelay, caddy.ParseDuration)
		if want > 0 && (err != nil || !got.Equal(now.Add(want))) {
			t.Errorf("%s: it starts at %v: %v", value, got, err)
		}
		if want == 0 && err == nil {
			t.Errorf("%.10s: it starts at %v", value, got)
		}
	}
}
