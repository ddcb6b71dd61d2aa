package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// FreeAddr returns a local address that nobody listens on, and that no other test
// is given, of this process or another. The system's own choice would not do: until
// it is used, some connection may be given it. And two gateways that are given the
// same one would both listen on it, and share what comes.
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

// claim takes a port for this process until it ends, and says whether it did: a
// port of another kind stands for it, on which nobody listens.
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
	conns []net.PacketConn // open for as long as the process lives
}
