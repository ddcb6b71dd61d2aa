package nats

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap/zaptest"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/enginetest"
)

// shortLease is how long a test waits for a lease to expire.
const shortLease = 900 * time.Millisecond

// startServer starts a JetStream server with its files in a folder.
func startServer(t testing.TB, folder string, change func(*server.Options)) *server.Server {
	t.Helper()
	opts := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: folder, NoSigs: true}
	if change != nil {
		change(opts)
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(time.Minute) {
		t.Fatal("the server is not ready")
	}
	return srv
}

// open opens an engine and closes it at the end of the test.
func open(t testing.TB, cfg Config) *Engine {
	t.Helper()
	if cfg.LeaseTime == 0 {
		cfg.LeaseTime = shortLease
	}
	if cfg.Replicas == 0 {
		cfg.Replicas = 1
	}
	if cfg.Logger == nil {
		cfg.Logger = zaptest.NewLogger(t)
	}
	e, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.(*Engine).kill() })
	return e.(*Engine)
}

// clusterVariable is an environment variable that makes TestConformance use a cluster
// of three servers, which takes some minutes.
const clusterVariable = "CALLBACK_TEST_CLUSTER"

func TestConformance(t *testing.T) {
	t.Parallel()
	o := enginetest.Opener{
		Kill:        func(_ testing.TB, e engine.Engine) { e.(*Engine).kill() },
		LeaseExpiry: 4 * shortLease,
		Cluster:     true,
		Full:        fill,
	}
	if os.Getenv(clusterVariable) != "" {
		stores := newAccounts(t)
		o.Open = func(t testing.TB, s *enginetest.Store) engine.Engine {
			return open(t, Config{URLs: stores.of(s), Settings: s.Settings, Replicas: 3})
		}
	} else {
		stores := &servers{by: make(map[*enginetest.Store]*server.Server)}
		var wires sync.Map // by engine
		o.Open = func(t testing.TB, s *enginetest.Store) engine.Engine {
			w := newProxy(t, stores.of(t, s).Addr().String())
			e := open(t, Config{URLs: []string{w.addr}, Settings: s.Settings})
			wires.Store(e, w)
			return e
		}
		o.Unavailable = func(_ testing.TB, _ *enginetest.Store, e engine.Engine) func() {
			w, _ := wires.Load(e.(*Engine))
			return w.(*proxy).cut()
		}
	}
	enginetest.Run(t, o)
}

// fill limits the task stream to slightly more than its size.
func fill(t testing.TB, _ *enginetest.Store, opened engine.Engine) func() {
	e := opened.(*Engine)
	filler := keySubject + "filler"
	if _, err := e.js.Publish(t.Context(), filler, make([]byte, 700<<10)); err != nil {
		t.Fatal(err)
	}
	limit := func(stream jetstream.Stream, most int64, full bool) {
		cfg := stream.CachedInfo().Config
		cfg.MaxBytes = most
		if _, err := e.js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the engine notices", func() bool {
			signal(e.beatNow)
			return (e.Ready() != nil) == full
		})
	}
	stream, err := e.js.Stream(t.Context(), taskStream)
	if err != nil {
		t.Fatal(err)
	}
	used := int64(stream.CachedInfo().State.Bytes)
	limit(stream, used+used/20, true)
	return func() {
		if err := stream.Purge(t.Context(), jetstream.WithPurgeSubject(filler)); err != nil {
			t.Fatal(err)
		}
		limit(stream, -1, false)
	}
}

// eventually waits until ok returns true, at most five minutes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within five minutes", what)
		}
	}
}
