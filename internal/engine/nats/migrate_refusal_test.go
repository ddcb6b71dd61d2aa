package engine

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAStoreThatWasMovedIsNotOpenedByMistake(t *testing.T) {
	t.Parallel()
	store, cfg := t.TempDir(), startServer(t, nil)
	before := fillStore(t, store)
	cfg.URLs[0] = strings.Replace(cfg.URLs[0], "://", "://user:planted-secret@", 1)
	migrate(t, store, cfg)
	_, err := Open(t.Context(), Config{Store: store})
	if err == nil || !strings.Contains(err.Error(), "were moved to nats://127.0.0.1") || strings.Contains(err.Error(), "planted") {
		t.Fatalf("it is opened: %v", err)
	}
	if err := os.Remove(filepath.Join(store, movedFile)); err != nil {
		t.Fatal(err)
	}
	// The operator insists. The leases of this test are an hour.
	e := open(t, store, time.Hour)
	defer e.Close()
	if after := standings(t, e); !maps.Equal(after, before) {
		t.Errorf("tasks stand on %v, not %v", after, before)
	}
	rec := queued("c.example:443")
	enqueue(t, e, &rec, nil)
}

func TestAMigrationSaysWhyItCannotBegin(t *testing.T) {
	t.Parallel()
	cfg := startServer(t, nil)
	used, unmoved := t.TempDir(), t.TempDir()
	e := open(t, used, time.Hour)
	defer e.Close()
	open(t, unmoved, time.Hour).Close()
	away := cfg
	away.URLs = []string{"nats://127.0.0.1:1"}
	for name, c := range map[string]struct {
		store string
		to    Config
		want  string
	}{
		"no folder":       {filepath.Join(t.TempDir(), "absent"), cfg, "there is no store in"},
		"an empty folder": {t.TempDir(), cfg, "there is no store in"},
		"a store in use":  {used, cfg, "in use by another process"},
		"no cluster":      {unmoved, away, "cannot be reached"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Migration{From: Config{Store: c.store}, To: c.to, NameTick: nameTick}.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("it says %v, not %q", err, c.want)
			}
		})
	}
	open(t, unmoved, time.Hour).Close() // nothing has happened to it
	names, err := filepath.Glob(filepath.Join(unmoved, movedFile+"*"))
	if err != nil || slices.Contains(names, movedFile) {
		t.Errorf("the store has %v: %v", names, err)
	}
}
