package engine

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// BenchmarkQueue takes tasks from a queue in which others wait behind them, as a
// worker does.
func BenchmarkQueue(b *testing.B) {
	for _, waiting := range []int{0, 10_000, 100_000} {
		b.Run(fmt.Sprintf("%d_wait", waiting), func(b *testing.B) {
			e, err := Open(b.Context(), Config{
				Store: b.TempDir(), Sync: 10 * time.Millisecond, Retention: time.Hour, RetentionCount: 100_000,
			})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(e.Close)
			q, err := e.Queue(b.Context(), "q")
			if err != nil {
				b.Fatal(err)
			}
			fill(b, e, waiting+b.N)
			b.ResetTimer()
			for done := 0; done < b.N; {
				for w, err := range q.Fetch(1) {
					if err != nil {
						b.Fatal(err)
					}
					rec := *w.Record()
					l, err := w.Claim(b.Context(), rec, func() {})
					if err != nil {
						b.Fatal(err)
					}
					rec.Status, rec.CallbackHost = task.Complete, "c.example:443"
					if err := l.Settle(b.Context(), &rec, nil, false); err != nil {
						b.Fatal(err)
					}
					done++
				}
			}
		})
	}
}

// fill puts n tasks into the queue q.
func fill(b *testing.B, e *Engine, n int) {
	b.Helper()
	var group sync.WaitGroup
	const at = 16
	for i := range at {
		group.Go(func() {
			for range n/at + 1 {
				rec := &task.Record{
					Task:    task.Task{ID: uuid.NewString(), Queue: "q", CreatedAt: time.Now().UTC()},
					Request: &task.Request{Method: "POST", URI: "/", Header: map[string][]string{"Content-Type": {"application/json"}}},
				}
				if err := e.Enqueue(context.Background(), rec, []byte(`{"prompt":"x"}`)); err != nil {
					b.Error(err, i)
					return
				}
			}
		})
	}
	group.Wait()
}
