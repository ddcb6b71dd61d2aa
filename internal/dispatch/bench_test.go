package dispatch

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// BenchmarkNext measures one attempt, from Due to Done, while others wait.
func BenchmarkNext(b *testing.B) {
	for _, bb := range []struct {
		hosts, due int
		stats      Stats
	}{
		{1000, 1, good},
		{1000, 1, Stats{}},
		{100_000, 10, good},
		{100_000, 10, Stats{}},
	} {
		name := "known"
		if bb.stats == (Stats{}) {
			name = "unknown"
		}
		b.Run(fmt.Sprintf("%d hosts, %d due to each, %s", bb.hosts, bb.due, name), func(b *testing.B) {
			before := heapBytes()
			d, now := New(Limits{Hosts: bb.hosts}), epoch
			names := make([]string, bb.hosts)
			for i := range names {
				names[i] = fmt.Sprintf("host%d.example:443", i)
				d.Due(Due{Host: names[i], N: bb.due, Stats: bb.stats}, now)
			}
			bytes := float64(heapBytes()-before) / float64(bb.hosts)
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Millisecond)
				g, ok := d.Next(now)
				if !ok {
					b.Fatal("no attempt may start")
				}
				d.NextChange(now)
				d.Due(Due{Host: g.Host, N: len(g.Attempts)}, now)
				for _, a := range g.Attempts {
					d.Done(a, Outcome{Kind: Cancelled}, now)
				}
			}
			b.ReportMetric(bytes, "B/host")
		})
	}
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
