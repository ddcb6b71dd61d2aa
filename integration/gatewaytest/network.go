package gatewaytest

import (
	"net"
	"sync"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
)

// Network forwards connections until it is cut. While it is cut, it forwards nothing and
// closes no connection. Data in transit is delivered once it is restored.
type Network struct {
	t     testing.TB
	mu    sync.Mutex
	whole chan struct{} // closed while the network is not cut
}

// NewNetwork returns a network that is not cut.
func NewNetwork(t testing.TB) *Network {
	n := &Network{t: t, whole: make(chan struct{})}
	close(n.whole)
	return n
}

// Cut stops all traffic through the network.
func (n *Network) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.whole = make(chan struct{})
}

// Restore ends a cut.
func (n *Network) Restore() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.whole)
}

// wait waits until the network is not cut, and reports whether the test still runs.
func (n *Network) wait() bool {
	n.mu.Lock()
	whole := n.whole
	n.mu.Unlock()
	select {
	case <-whole:
		return true
	case <-n.t.Context().Done():
		return false
	}
}

// To returns an address that leads to addr through the network.
func (n *Network) To(addr string) string {
	n.t.Helper()
	l := freeaddr.Listen(n.t)
	n.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go n.connect(near, addr)
		}
	}()
	return l.Addr().String()
}

func (n *Network) connect(near net.Conn, addr string) {
	defer near.Close()
	if !n.wait() {
		return
	}
	far, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer far.Close()
	ended := make(chan struct{}, 2)
	for to, from := range map[net.Conn]net.Conn{near: far, far: near} {
		go func() {
			n.forward(to, from)
			ended <- struct{}{}
		}()
	}
	select {
	case <-ended:
	case <-n.t.Context().Done():
	}
}

// forward copies from one connection to the other until one of them closes.
func (n *Network) forward(to, from net.Conn) {
	piece := make([]byte, 64<<10)
	for {
		size, err := from.Read(piece)
		if !n.wait() {
			return
		}
		if _, failed := to.Write(piece[:size]); err != nil || failed != nil {
			return
		}
	}
}
