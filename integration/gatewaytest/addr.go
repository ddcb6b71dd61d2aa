package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// FreeAddr returns a local address that nobody listens on. The system's own
// choice would not do: until it is used, some connection may be given it.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const first, last = 10_000, 32_000 // below the ports that systems give out
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", first+rand.N(last-first))
		if _, taken := addrs.LoadOrStore(addr, true); taken {
			continue
		}
		if ln, err := net.Listen("tcp", addr); err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	panic("unreachable")
}

// addrs are those that FreeAddr has returned.
var addrs sync.Map
