//go:build unix

package sqlite

import (
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ncruces/go-sqlite3/vfs"
)

// meter measures the CPU time and the writes of a store.
type meter struct {
	*fileSystem
	bytes, frames, commits atomic.Int64
}

func newMeter(b *testing.B) *meter {
	m := &meter{fileSystem: registerFileSystem(nil)}
	b.Cleanup(m.unregister)
	return m
}

func (m *meter) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	f, flags, err := m.fileSystem.OpenFilename(name, flags)
	if err != nil {
		return nil, flags, err
	}
	return &metered{f.(*file), m}, flags, nil
}

type metered struct {
	*file
	*meter
}

func (f *metered) WriteAt(p []byte, off int64) (int, error) {
	f.bytes.Add(int64(len(p)))
	if f.gathers {
		const logHeader = 32
		f.commits.Add(1)
		f.frames.Add(int64(len(p)-logHeader)/(frameHeader+pageSize) + 1)
	}
	return f.file.File.WriteAt(p, off)
}

// report adds the CPU time and writes per task to a benchmark's result. It measures
// from its call until end is called.
func (m *meter) report(b *testing.B) (end func(operations int64)) {
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began, bytes, frames, commits := cpu(), m.bytes.Load(), m.frames.Load(), m.commits.Load()
	return func(operations int64) {
		n := float64(b.N)
		b.ReportMetric(float64(cpu()-began)/1e3/n, "cpu-µs/op")
		b.ReportMetric(float64(m.bytes.Load()-bytes)/1e3/n, "kB-written/op")
		b.ReportMetric(float64(m.frames.Load()-frames)/n, "pages/op")
		b.ReportMetric(float64(operations)/float64(max(1, m.commits.Load()-commits)), "ops/batch")
	}
}
