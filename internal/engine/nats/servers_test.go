package nats

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/caddy-callback/caddy-callback/internal/engine/enginetest"
)

// servers starts one server for each store of the suite.
type servers struct {
	mu sync.Mutex
	by map[*enginetest.Store]*server.Server
}

func (s *servers) of(t testing.TB, store *enginetest.Store) *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	srv := s.by[store]
	if srv == nil {
		srv = startServer(t, store.Dir, nil)
		s.by[store] = srv
	}
	return srv
}

// proxy forwards connections to a server until it is cut.
type proxy struct {
	addr  string
	mu    sync.Mutex
	isCut bool
	conns []net.Conn
}

func newProxy(t testing.TB, server string) *proxy {
	w := new(proxy)
	w.addr = listen(t, func(client net.Conn) {
		conn, err := net.Dial("tcp", server)
		if err != nil {
			client.Close()
			return
		}
		w.mu.Lock()
		w.conns = append(w.conns, client, conn)
		isCut := w.isCut
		w.mu.Unlock()
		if isCut {
			w.cut()
			return
		}
		go func() {
			defer client.Close()
			_, _ = io.Copy(client, conn)
		}()
		defer conn.Close()
		_, _ = io.Copy(conn, client)
	})
	return w
}

// cut closes all connections and refuses new ones until restore is called.
func (w *proxy) cut() (restore func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = true
	for _, conn := range w.conns {
		conn.Close()
	}
	w.conns = nil
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.isCut = false
	}
}

// accounts uses one account of a cluster for each store of the suite.
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
