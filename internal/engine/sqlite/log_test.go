package sqlite

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// TestDamagedLogIsReported damages the log of a killed store.
func TestDamagedLogIsReported(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	for range 20 {
		settled(t, s, newTask("a.test:443"), "result")
	}
	for name, tt := range map[string]struct {
		change func(log []byte) []byte
		want   bool
	}{
		"undamaged":               {func(log []byte) []byte { return log }, false},
		"torn at the end":         {func(log []byte) []byte { return log[:len(log)-1000] }, false},
		"last commit not written": {func(log []byte) []byte { clear(log[len(log)-frameHeader-pageSize:]); return log }, false},
		"flipped in the middle":   {func(log []byte) []byte { log[len(log)/2] ^= 1; return log }, true},
		"flipped in the header":   {func(log []byte) []byte { log[20] ^= 1; return log }, true},
		"flipped in a checksum":   {func(log []byte) []byte { log[25] ^= 1; return log }, true},
		"a frame's header lost":   {func(log []byte) []byte { clear(log[logHeader : logHeader+frameHeader]); return log }, true},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			for _, suffix := range []string{"", "-wal"} {
				data, err := os.ReadFile(s.file + suffix)
				must(t, err)
				if suffix != "" {
					data = tt.change(data)
				}
				must(t, os.WriteFile(filepath.Join(folder, databaseName+suffix), data, 0o600))
			}
			core, logs := observer.New(zapcore.ErrorLevel)
			openTest(t, Config{Folder: folder, holder: 1, Logger: zap.New(core)})
			if got := logs.FilterMessage("log of the store is damaged").Len() == 1; got != tt.want {
				t.Errorf("damage is reported: %v; the log has %v", got, logs.All())
			}
		})
	}
}

// stuckDisk is a disk that removes no file while it is stuck.
type stuckDisk struct {
	systemDisk
	stuck atomic.Bool
}

func (d *stuckDisk) remove(name string) error {
	if d.stuck.Load() {
		return &os.PathError{Op: "remove", Path: name, Err: syscall.EACCES}
	}
	return d.systemDisk.remove(name)
}

func TestBodyThatCannotBeRemovedIsReportedOnce(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zapcore.WarnLevel)
	d := new(stuckDisk)
	s := openTest(t, Config{disk: d, Logger: zap.New(core)})
	large := strings.Repeat("x", maxInline+1)
	for round := 1; round <= 2; round++ {
		d.stuck.Store(true)
		for range 3 {
			rec := newTask("a.test:443")
			settled(t, s, rec, large)
			must(t, takeOne(t, s, "a.test:443").Dead(t.Context()))
			must(t, s.Act(t.Context(), rec.ID, engine.Action{Kind: engine.Delete}))
		}
		if n := logs.FilterMessage("removing a body failed").Len(); n != round {
			t.Errorf("%d warnings were logged by round %d", n, round)
		}
		if got := s.room.bodies.Load(); got != int64(3*len(large)) {
			t.Errorf("files of %d bytes are counted while they cannot be removed", got)
		}
		d.stuck.Store(false)
		settled(t, s, newTask(""), "result")
		if files, err := os.ReadDir(s.bodies.folder); err != nil || len(files) != 0 || s.room.bodies.Load() != 0 {
			t.Errorf("files are left: %v, %v", files, err)
		}
	}
}
