package engine

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// hang keeps the server of an engine from ending when the engine closes it, and
// returns it. It goes on with all that it does.
func hang(t *testing.T, e *Engine) *server.Server {
	t.Helper()
	k := e.link()
	end := k.close
	k.close = func() {
		k.end()
		k.nc.Close()
		<-t.Context().Done()
	}
	t.Cleanup(end)
	return k.server
}

// scribble has a server that was left behind store and remove things in all its
// streams. Whether it can is no matter.
func scribble(t *testing.T, srv *server.Server) {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for _, subject := range []string{dueSubject + "host.scribbled", endedProbe, deadProbe} {
		for range 20 {
			if _, err := js.Publish(t.Context(), subject, make([]byte, 1000)); err != nil {
				t.Logf("storing %s: %v", subject, err)
				break
			}
			accepted++
		}
	}
	if accepted == 0 {
		t.Fatal("the server that was left behind does nothing: this shows nothing")
	}
	for _, name := range []string{liveStream, endedStream, deadStream} {
		s, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Purge(t.Context(), jetstream.WithPurgeSubject("callback.>")); err != nil {
			t.Logf("purging %s: %v", name, err)
		}
	}
}

// homes returns where a store has its files, as names in it.
func homes(t *testing.T, store string) (names []string) {
	t.Helper()
	folders, _, err := homesIn(store)
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range folders {
		name, err := filepath.Rel(store, folder)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

func TestAServerThatDoesNotEndIsLeftBehind(t *testing.T) {
	t.Parallel()
	s := newDamagedStore(t, false)
	core, logs := observer.New(zap.InfoLevel)
	e := openWith(t, Config{Store: s.folder, patience: 50 * time.Millisecond, Logger: zap.New(core)})
	held := record("c.example:443")
	l := claim(t, e, held)
	waiting := queued("c.example:443")
	enqueue(t, e, &waiting, nil)

	var before []string
	for range 2 { // the second is not the store's first place
		left := hang(t, e)
		if err := e.reopen(t.Context()); err != nil {
			t.Fatal(err)
		}
		now := homes(t, s.folder)
		if len(now) != 1 || now[0] == "." || slices.Equal(now, before) {
			t.Fatalf("the files are in %v, and were in %v", now, before)
		}
		before = now
		scribble(t, left)
		if err := e.Ready(); err != nil {
			t.Errorf("it is not ready: %v", err)
		}
		if !e.stands() {
			t.Error("the store counts as removed")
		}
	}
	settle(t, l, held, bodyOf(&held))
	s.tasks = append(s.tasks, held)
	e.Close()

	// This process must not go back to where a server of its own still writes.
	e = openWith(t, Config{Store: s.folder, Logger: zap.New(core)})
	if now := homes(t, s.folder); !slices.Equal(now, before) {
		t.Errorf("the files are in %v, and were in %v", now, before)
	}
	e.Close()

	leftBehind.Delete(s.folder) // as it is in another process
	e = openOn(t, Config{Store: s.folder, Logger: zap.New(core)})
	for _, entry := range logs.FilterMessageSnippet("damaged").All() {
		t.Errorf("the server that was left behind wrote to the store: %v %v", entry.Message, entry.ContextMap())
	}
	if now := homes(t, s.folder); !slices.Equal(now, []string{"."}) {
		t.Errorf("the files are in %v", now)
	}
	if more, err := filepath.Glob(filepath.Join(s.folder, homePrefix+"*")); err != nil || len(more) > 0 {
		t.Errorf("%v are left: %v", more, err)
	}
	if w := hand(t, e); w.Record().ID != waiting.ID {
		t.Errorf("handed out is %s", w.Record().ID)
	}
	s.deliver(t, e, nil)
}

func TestOfTwoStoresInAFolderNoneIsOpened(t *testing.T) {
	t.Parallel()
	s := newDamagedStore(t, false)
	if err := os.MkdirAll(filepath.Join(s.folder, homePrefix+"1", "jetstream"), 0o700); err != nil {
		t.Fatal(err)
	}
	if e, err := Open(t.Context(), Config{Store: s.folder}); err == nil {
		e.Close()
		t.Fatal("one of them was opened")
	}
	if err := os.Remove(filepath.Join(s.folder, homePrefix+"1", "jetstream")); err != nil {
		t.Fatal(err)
	}
	s.deliver(t, openOn(t, Config{Store: s.folder}), nil)
}
