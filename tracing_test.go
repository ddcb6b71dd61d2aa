package callback

import (
	"net/http"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestWithoutTracingNothingIsAllocatedForIt(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://receiver.example/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	s, q, x, rec, at := &sender{app: new(App)}, &TaskQueue{app: new(App)}, new(exchange), new(task.Record), time.Now()
	allocs := testing.AllocsPerRun(100, func() {
		if spanOf(req.Context()) != "" {
			t.Error("there is a span")
		}
		traceTask(req.Context(), rec)
		endRun(q.startRun(x, req), rec)
		ans := answer{at: at, span: s.startAttempt(rec, req, at)}
		ans.endSpan(outcomeDelivered)
	})
	if allocs != 0 || len(req.Header) != 0 {
		t.Errorf("%v allocations, and the header %v", allocs, req.Header)
	}
}
