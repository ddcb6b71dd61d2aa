package sqlite

import (
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
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
