package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// FreeAddr returns a local address on which nothing listens and which no other test gets,
// in this process or another. A port chosen by the system is not safe: a connection can
// take it before it is used, and two gateways with the same port would both listen on it
// and share the requests.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const first, last = 10_000, 32_000 // below the ports that systems give out
	for range 100 {
		port := first + rand.N(last-first)
		if !claim(port) {
			continue
		}
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	panic("unreachable")
}

// claim reserves a port until this process ends, and reports whether it succeeded. It
// binds the UDP port as a marker, so that the TCP port stays free.
func claim(port int) bool {
	const beyond = 33_000
	conn, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", port+beyond))
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
