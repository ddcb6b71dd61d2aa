package callback

import (
	"net/http"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestNoTracingDoesNotAllocate(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://receiver.example/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	a, q, x, rec, at := new(App), &TaskQueue{app: new(App)}, new(execution), new(task.Record), time.Now()
	allocs := testing.AllocsPerRun(100, func() {
		if spanOf(req.Context()) != "" {
			t.Error("there is a span")
		}
		traceTask(req.Context(), rec)
		endRun(q.startRun(x, req), rec)
		endAttempt(a.startAttempt(rec, req, at), &send.Answer{At: at}, deliver.Delivered)
	})
	if allocs != 0 || len(req.Header) != 0 {
		t.Errorf("%v allocations, and the header %v", allocs, req.Header)
	}
}
