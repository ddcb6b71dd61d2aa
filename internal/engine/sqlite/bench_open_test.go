package sqlite

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// BenchmarkOpen opens a store with a million due callbacks after kill -9, and waits
// until all their hosts are reported.
func BenchmarkOpen(b *testing.B) {
	const tasks = 1_000_000
	for _, hosts := range []int{1, tasks} {
		b.Run(fmt.Sprintf("hosts %d", hosts), func(b *testing.B) {
			folder := b.TempDir()
			fillDue(b, folder, tasks, hosts)
			before := heap()
			for range b.N {
				began := time.Now()
				s, err := open(b.Context(), Config{Folder: folder, MaxSize: 100 << 30, holder: 1})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-to-open")
				b.ReportMetric(float64(heap()-before)/1e6, "MB-open")
				began = time.Now()
				for reported := 0; reported < hosts; {
					due, err := s.DueHosts(b.Context(), 256)
					if err != nil {
						b.Fatal(err)
					}
					reported += len(due)
				}
				b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms-to-report")
				b.ReportMetric(float64(heap()-before)/1e6, "MB-reported")
				began = time.Now()
				if _, _, err := s.Hosts(b.Context(), "", 100); err != nil {
					b.Fatal(err)
				}
				if _, err := s.Stats(b.Context()); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(time.Since(began).Microseconds())/1e3, "ms-to-list")
				if err := s.Close(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// fillDue stores due callbacks.
func fillDue(b *testing.B, folder string, tasks, hosts int) {
	b.Helper()
	s, err := open(b.Context(), Config{Folder: folder, MaxSize: 100 << 30, Sync: time.Hour, Settings: engine.Settings{}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(context.Background())
	const batch = 1000
	for i := 0; i < tasks; i += batch {
		err := s.update(b.Context(), func(t *tx) error {
			for n := i; n < i+batch; n++ {
				rec := newTask(fmt.Sprintf("127.%d.%d.%d:1", 1+n%hosts>>16, n%hosts>>8&255, n%hosts&255))
				rec.State, rec.Status, rec.FinishedAt = task.Delivering, task.Complete, rec.CreatedAt
				doc, err := encode(rec)
				if err == nil {
					err = t.insertImported(rec, doc, nil, nil)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
