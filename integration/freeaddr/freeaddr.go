// Package freeaddr finds addresses for the servers of tests. Servers whose port is chosen
// by the system are not safe: the port may have been that of a server that has closed, to
// which the gateway of another test still sends callbacks.
package freeaddr

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// New returns a local address with a port as of [Port].
func New(t testing.TB) string {
	t.Helper()
	return addr(loopback, Port(t))
}

const loopback = "127.0.0.1"

func addr(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// Port returns a local port on which nothing listens and which no other test gets, in
// this process or another. A port chosen by the system is not safe: a connection can
// take it before it is used, and two gateways with the same port would both listen on it
// and share the requests.
func Port(t testing.TB) int {
	t.Helper()
	ln := ListenOn(t, loopback)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// Listen listens on a local address with a port as of [Port].
func Listen(t testing.TB) net.Listener {
	t.Helper()
	return ListenOn(t, loopback)
}

// ListenOn is [Listen] for another IP address.
func ListenOn(t testing.TB, host string) net.Listener {
	t.Helper()
	const first, last = 10_000, 32_000 // below the ephemeral ports of common systems
	for range 100 {
		port := first + rand.N(last-first)
		if !claim(port) {
			continue
		}
		if ln, err := net.Listen("tcp", addr(host, port)); err == nil {
			return ln
		}
	}
	t.Fatal("no port is free")
	panic("unreachable")
}

// claim reserves a port until this process ends, and reports whether it succeeded. It
// binds the UDP port as a marker, so that the TCP port stays free.
func claim(port int) bool {
	const beyond = 33_000
	conn, err := net.ListenPacket("udp4", addr(loopback, port+beyond))
	if err != nil {
		return false
	}
	claims.Lock()
	defer claims.Unlock()
	claims.conns = append(claims.conns, conn)
	return true
}

var claims struct {
	sync.Mutex
	conns []net.PacketConn // open until the process ends
}
