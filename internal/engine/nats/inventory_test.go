package engine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// killed returns a store as an engine leaves it whose process is killed: a copy, made
// when the inventory has what is stored.
func killed(t *testing.T, e *Engine) (folder string) {
	t.Helper()
	eventually(t, "the inventory has what is stored", func() bool {
		var s stock
		if err := s.open(e.cfg.Store); err != nil {
			t.Fatal(err)
		}
		for _, name := range allStreams {
			stream, err := e.link().js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if last, ok := s.known.Last[name]; !ok || last != stream.CachedInfo().State.LastSeq {
				return false
			}
		}
		return true
	})
	for {
		folder = filepath.Join(t.TempDir(), "store")
		err := os.CopyFS(folder, os.DirFS(e.cfg.Store))
		if err == nil {
			return folder
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		// The server removed a file meanwhile: a kill is of one moment, this was of two.
	}
}

// The server begins new files, clears old ones out and removes them. None of that is
// a loss.
func TestOfAStoreThatLacksNothingNothingIsSaid(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "store")
	core, logs := observer.New(zap.ErrorLevel)
	open := func(folder string) *Engine {
		return openWith(t, Config{Store: folder, Logger: zap.New(core)})
	}
	e := open(folder)
	for round := range 4 {
		var dead []string
		for n := range 30 {
			rec := queued("c.example:443") // its result is kept
			body := make([]byte, 300<<10)
			if n%10 == 0 {
				body = make([]byte, e.link().publishLimit+1) // it does not fit in a message
			}
			settle(t, claim(t, e, rec), rec, body)
			d := fetch(t, e)
			if n%3 > 0 {
				end(t, e, d)
				continue
			}
			if err := d.Dead(t.Context()); err != nil {
				t.Fatal(err)
			}
			dead = append(dead, rec.ID)
		}
		// The first or the last messages of a stream are gone, or all.
		for _, id := range [][]string{dead, dead[:1], dead[len(dead)-1:], nil}[round] {
			if err := e.Purge(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := e.dropEnded(t.Context()); err != nil {
			t.Fatal(err)
		}
		open(killed(t, e)).Close()
		e.Close()
		e = open(folder)
	}
	e.Close()
	for _, entry := range logs.All() {
		t.Errorf("logged without need: %s %v", entry.Message, entry.ContextMap())
	}
}

func TestOfAnInventoryThatCannotBeReadTheLogSaysSo(t *testing.T) {
	t.Parallel()
	s := newDamagedStore(t, false)
	if err := os.WriteFile(filepath.Join(s.folder, inventoryName), make([]byte, inventorySize), 0o600); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.ErrorLevel)
	e := openOn(t, Config{Store: s.folder, Logger: zap.New(core)})
	s.deliver(t, e, nil)
	if all := logs.All(); len(all) != 1 || !strings.Contains(all[0].Message, "whether files are missing is not known") {
		t.Errorf("logged is %v", all)
	}
}
