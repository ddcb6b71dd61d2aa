package integration

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/google/uuid"
)

func TestTheDocumentedExampleComesOutLetterForLetter(t *testing.T) {
	t.Parallel()
	app := newApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"response":"example response"}`)
	})
	rcv := newReceiver(t, nil)
	g := startGateway(t, toLocal, "callback\nreverse_proxy "+app)

	resp, body := g.post("/", fmt.Sprintf(`{"prompt":"hello","callback_url":%q}`, rcv.URL))
	if resp.StatusCode != 200 || body != `{"response":"example response"}` {
		t.Fatalf("the client got %d %s", resp.StatusCode, body)
	}
	id := resp.Header.Get("beam-task-id")
	if parsed, err := uuid.Parse(id); err != nil || parsed.Version() != 4 {
		t.Errorf("beam-task-id is %q, not a version 4 UUID", id)
	}
	got := rcv.next(t)
	if got.body != "response=example+response" {
		t.Errorf("the callback's body is %q", got.body)
	}
	for name, want := range map[string]string{
		"Content-Type":             "application/x-www-form-urlencoded",
		"Beam-Task-Id":             id,
		"X-Beam-Task-Status":       "COMPLETE",
		"Callback-Attempt":         "1",
		"Callback-Upstream-Status": "200",
		"Callback-Hop":             "1",
	} {
		if v := got.header.Get(name); v != want {
			t.Errorf("%s is %q, not %q", name, v, want)
		}
	}
}
