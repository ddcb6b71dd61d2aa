package engine

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// BenchmarkLease claims and settles tasks, many at once; beside it, what it costs
// to publish as many messages.
func BenchmarkLease(b *testing.B) {
	e, err := Open(b.Context(), Config{
		Store: b.TempDir(), Sync: 10 * time.Millisecond, Retention: time.Hour, RetentionCount: 100_000,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(e.Close)
	b.Run("claim and settle", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(8)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				rec := record("c.example:443")
				l, err := e.Claim(b.Context(), rec, func() {})
				if err != nil {
					b.Error(err)
					return
				}
				rec.Status = task.Complete
				if err := l.Settle(b.Context(), &rec, []byte(`{"response":"example response"}`), false); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	b.Run("two publishes", func(b *testing.B) {
		b.ReportAllocs()
		b.SetParallelism(8)
		data := make([]byte, 400)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				for range 2 {
					if _, err := e.link().js.PublishMsg(b.Context(), &nats.Msg{Subject: dueSubject + "b." + uuid.NewString(), Data: data}); err != nil {
						b.Error(err)
						return
					}
				}
			}
		})
	})
}
