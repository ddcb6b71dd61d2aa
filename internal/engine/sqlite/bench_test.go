//go:build unix

package sqlite

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// BenchmarkTask stores the whole life of a waiting client's task: it is claimed,
// settled with a small result, taken and delivered. 64 tasks run at once.
func BenchmarkTask(b *testing.B) {
	for name, sync := range map[string]time.Duration{"sync always": 0, "sync 10ms": 10 * time.Millisecond} {
		b.Run(name, func(b *testing.B) {
			meter := newMeter(b)
			e, err := Open(b.Context(), Config{
				vfs:    meter,
				Folder: b.TempDir(), Sync: sync, MaxSize: 10 << 30, Logger: zap.NewNop(),
				Settings: engine.Settings{Retention: time.Hour, RetentionCount: 100_000, Dead: time.Hour, DeadCount: 10_000, KeepResults: true},
			})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close(b.Context())
			body := []byte(`{"response":"example response"}`)
			var n atomic.Int64
			b.SetParallelism(32)
			b.ReportAllocs()
			b.ResetTimer()
			end := meter.report(b)
			b.RunParallel(func(pb *testing.PB) {
				host := fmt.Sprintf("127.0.0.%d:80", n.Add(1)%250)
				for pb.Next() {
					if err := live(b, e, host, body); err != nil {
						b.Error(err)
						return
					}
				}
			})
			end(3 * int64(b.N))
		})
	}
}

func live(b *testing.B, e engine.Engine, host string, body []byte) error {
	ctx := b.Context()
	now := time.Now().UTC()
	rec := &task.Record{
		Task:     task.Task{ID: uuid.Must(uuid.NewV7()).String(), CreatedAt: now, StartedAt: now, CallbackHost: host},
		Route:    "srv0",
		Callback: &task.Callback{URL: "http://" + host + "/hook", Format: "form", TaskHeader: "beam-task-id", StatusHeader: "x-beam-task-status", MaxResult: 8 << 20},
	}
	lease, err := e.Claim(ctx, rec)
	if err != nil {
		return err
	}
	rec.Status, rec.UpstreamStatus, rec.FinishedAt = task.Complete, 200, time.Now().UTC()
	rec.Result = &task.Result{ContentType: "application/json", Size: int64(len(body))}
	if err := lease.Settle(ctx, rec, bytes.NewReader(body)); err != nil {
		return err
	}
	due, err := e.Take(ctx, host, 1)
	if err != nil {
		return err
	}
	for _, d := range due {
		d.Record().AddAttempt(task.Attempt{At: now, StatusCode: 200, DurationMS: 1})
		if err := d.Done(ctx); err != nil {
			return err
		}
	}
	return nil
}
