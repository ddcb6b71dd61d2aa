package nats

import (
	"net"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/caddy-callback/caddy-callback/internal/engine/enginetest"
)

// servers has a server for each store of a suite.
type servers struct {
	mu sync.Mutex
	by map[*enginetest.Store]*server.Server
}

func (s *servers) of(t testing.TB, store *enginetest.Store) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	srv := s.by[store]
	if srv == nil {
		srv = startServer(t, store.Dir, nil)
		s.by[store] = srv
	}
	return []string{srv.ClientURL()}
}

// stop stops a store's server, until it is started again on the same port.
func (s *servers) stop(t testing.TB, store *enginetest.Store) (start func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	srv := s.by[store]
	port := srv.Addr().(*net.TCPAddr).Port
	srv.Shutdown()
	srv.WaitForShutdown()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.by[store] = startServer(t, store.Dir, func(o *server.Options) { o.Port = port })
	}
}

// accounts has an account of one cluster for each store of a suite.
type accounts struct {
	cluster *cluster
	mu      sync.Mutex
	by      map[*enginetest.Store]int
}

func newAccounts(t testing.TB) *accounts {
	const enough = 300 // as many as the suite has cases
	return &accounts{cluster: startCluster(t, 3, enough), by: make(map[*enginetest.Store]int)}
}

func (a *accounts) of(store *enginetest.Store) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.by[store]; !ok {
		a.by[store] = len(a.by)
	}
	return a.cluster.urls(a.by[store])
}
