package gatewaytest

import (
	"net"
	"sync"
	"testing"
)

// Network carries connections until it is cut. Then nothing comes through, nobody is
// told, and what was on its way arrives when the network is whole again.
type Network struct {
	t     testing.TB
	mu    sync.Mutex
	whole chan struct{} // closed while it is
}

// NewNetwork makes a network that is whole.
func NewNetwork(t testing.TB) *Network {
	n := &Network{t: t, whole: make(chan struct{})}
	close(n.whole)
	return n
}

// Cut keeps everything from coming through.
func (n *Network) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.whole = make(chan struct{})
}

// Mend makes a network whole that was cut.
func (n *Network) Mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.whole)
}

// wait waits until the network is whole, and says whether the test goes on.
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

// To returns an address that leads to another through the network.
func (n *Network) To(addr string) string {
	n.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
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
			n.carry(to, from)
			ended <- struct{}{}
		}()
	}
	select {
	case <-ended:
	case <-n.t.Context().Done():
	}
}

// carry carries what comes from one end to the other, until one of them ends.
func (n *Network) carry(to, from net.Conn) {
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
