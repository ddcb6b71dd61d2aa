package integration

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/google/uuid"
)

func TestBeamExampleIsExact(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"response":"example response"}`)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)

	resp, body := g.Post("/", fmt.Sprintf(`{"prompt":"hello","callback_url":%q}`, rcv.URL))
	if resp.StatusCode != 200 || body != `{"response":"example response"}` {
		t.Fatalf("the client got %d %s", resp.StatusCode, body)
	}
	id := resp.Header.Get("beam-task-id")
	if parsed, err := uuid.Parse(id); err != nil || parsed.Version() != 7 {
		t.Errorf("beam-task-id is %q, not a version 7 UUID", id)
	}
	got := rcv.Next(t)
	if got.Body != "response=example+response" {
		t.Errorf("the callback's body is %q", got.Body)
	}
	for name, want := range map[string]string{
		"Content-Type":             "application/x-www-form-urlencoded",
		"Beam-Task-Id":             id,
		"X-Beam-Task-Status":       "COMPLETE",
		"Callback-Attempt":         "1",
		"Callback-Upstream-Status": "200",
		"Callback-Hop":             "1",
	} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("%s is %q, want %q", name, v, want)
		}
	}
}
