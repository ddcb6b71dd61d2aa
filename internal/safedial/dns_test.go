package safedial_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// A zone answers queries: for each name, in lower case and with a dot at its
// end, one list of addresses after another, the last one for ever.
type zone struct {
	mu      sync.Mutex
	answers map[string][][]netip.Addr
}

const (
	typeA    = 1
	typeAAAA = 28
)

// answer takes the next list when it is asked for IPv4, so that a resolver's
// pair of queries for one name sees one list.
func (z *zone) answer(name string, qtype uint16) []netip.Addr {
	z.mu.Lock()
	defer z.mu.Unlock()
	lists := z.answers[strings.ToLower(name)]
	if len(lists) == 0 || qtype != typeA {
		return nil
	}
	if len(lists) > 1 {
		z.answers[strings.ToLower(name)] = lists[1:]
	}
	return lists[0]
}

// serveDNS answers A queries from the zone on a port of its own, and returns a
// resolver that asks there only.
func serveDNS(t *testing.T, answers map[string][][]netip.Addr) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z := &zone{answers: answers}
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			if reply := z.reply(packet[:n]); reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "udp4", conn.LocalAddr().String())
		},
	}
}

// reply returns the response to a query (RFC 1035, section 4.1), or nil if the message
// is not a query.
func (z *zone) reply(query []byte) []byte {
	const headerSize = 12
	var name strings.Builder
	end := headerSize
	for end < len(query) && query[end] != 0 {
		label := query[end+1 : end+1+int(query[end])]
		name.Write(label)
		name.WriteByte('.')
		end += 1 + len(label)
	}
	end += 1 + 2 + 2 // the root label, type and class
	if end > len(query) {
		return nil
	}
	addrs := z.answer(name.String(), binary.BigEndian.Uint16(query[end-4:]))

	reply := append([]byte(nil), query[:2]...)           // ID
	reply = binary.BigEndian.AppendUint16(reply, 0x8180) // a response, recursion available
	reply = binary.BigEndian.AppendUint16(reply, 1)
	reply = binary.BigEndian.AppendUint16(reply, uint16(len(addrs)))
	reply = append(reply, 0, 0, 0, 0)
	reply = append(reply, query[headerSize:end]...)
	for _, addr := range addrs {
		reply = append(reply, 0xc0, headerSize) // the name, by reference to the question
		reply = binary.BigEndian.AppendUint16(reply, typeA)
		reply = append(reply, 0, 1, 0, 0, 0, 0) // class IN, time to live 0
		data := addr.AsSlice()
		reply = binary.BigEndian.AppendUint16(reply, uint16(len(data)))
		reply = append(reply, data...)
	}
	return reply
}
