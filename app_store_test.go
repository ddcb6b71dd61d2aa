package callback

import (
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"
)

// newTestApp returns an app whose store is open in a folder.
func newTestApp(t *testing.T, folder string) *App {
	t.Helper()
	keep := true
	a := &App{
		log: zap.NewNop(), KeepResults: &keep, Delivery: new(Delivery), started: make(chan struct{}),
		engine: &SQLiteEngine{Folder: folder, MaxSize: defaultStoreSize},
	}
	close(a.started)
	s, err := a.openStore(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.store.Store(s)
	t.Cleanup(func() {
		releaseStore(t, a)
		if _, used := stores.References(s.key); !used {
			<-s.closed // the folder is removed next
		}
	})
	return a
}

// releaseStore drops an app's reference to its store, once.
func releaseStore(t *testing.T, a *App) {
	t.Helper()
	if s := a.store.Swap(nil); s != nil {
		s.release()
	}
}

func TestLastReferenceClosesStore(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	first, second := newTestApp(t, folder), newTestApp(t, folder)
	s := first.store.Load()
	if second.store.Load() != s {
		t.Fatal("two apps do not share the store")
	}
	_, err := first.enter() // a task in flight
	if err != nil {
		t.Fatal(err)
	}
	releaseStore(t, first)
	releaseStore(t, second)
	if _, err := s.Stats(t.Context()); err != nil {
		t.Errorf("the store was closed while a task used it: %v", err)
	}
	s.leave()
	select {
	case <-s.closed:
	case <-time.After(time.Minute):
		t.Fatal("the store was not closed")
	}
	if _, err := first.enter(); !errors.Is(err, errNotOpen) {
		t.Errorf("error after closing: %v", err)
	}
}

func TestReopenClosingStore(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for range 20 {
		a := newTestApp(t, folder)
		releaseStore(t, a) // it closes in the background and locks the folder meanwhile
	}
}
