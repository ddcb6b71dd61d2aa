package send

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

const (
	// maxAnswerHeader bounds the header of an answer, so that a receiver cannot fill
	// the memory.
	maxAnswerHeader = 64 << 10
	// maxAhead is how much of an HTTP/2 answer a receiver may send before it is read.
	// With the default of 4 MiB, receivers could fill that much memory for each
	// attempt.
	maxAhead = 64 << 10
	// idleConnections and idleTimeout are how many connections are kept for reuse, and
	// for how long.
	idleConnections = 1024
	idleTimeout     = 90 * time.Second
	// quietTimeout is when a silent HTTP/2 connection is pinged, and pingTimeout is
	// when it is closed if there is no answer. All attempts to a host share the
	// connection: if it died silently, they would fail for as long as TCP retransmits.
	quietTimeout = 10 * time.Second
	pingTimeout  = 5 * time.Second
	// maxStrangers bounds the hosts that an http.Transport remembers. Once a request
	// has waited for a connection to a host, the transport keeps about 4 KB for that
	// host for ever.
	maxStrangers = 2048
)

// connections are the connections to the hosts that a policy permits.
type connections struct {
	create func() *http.Transport

	mu        sync.Mutex
	transport *http.Transport
	strangers map[string]struct{} // hosts that left no reusable connection
	closed    bool
}

func newConnections(o Options, policy *safedial.Policy) *connections {
	create := func() *http.Transport { return newTransport(o, policy) }
	return &connections{create: create, transport: create(), strangers: make(map[string]struct{})}
}

func (c *connections) current() *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.transport
}

// stranger records that an attempt to a host left no reusable connection. After many
// such hosts, a new transport replaces the old one. Attempts to hosts with reusable
// connections then connect once more.
func (c *connections) stranger(host string) {
	c.mu.Lock()
	c.strangers[host] = struct{}{}
	var old *http.Transport
	if len(c.strangers) >= maxStrangers {
		old = c.transport
		clear(c.strangers)
		if !c.closed {
			c.transport = c.create()
		}
	}
	c.mu.Unlock()
	if old != nil {
		old.CloseIdleConnections()
	}
}

func (c *connections) close() {
	c.mu.Lock()
	c.closed = true
	transport := c.transport
	c.mu.Unlock()
	transport.CloseIdleConnections()
}

// newTransport returns a transport that connects only where the policy permits.
func newTransport(o Options, policy *safedial.Policy) *http.Transport {
	config := new(tls.Config)
	if o.TLS != nil {
		config = o.TLS.Clone()
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	// A transport continues to connect when the attempt is over. Without their own
	// timeout, connections that are never established would pile up.
	dial := func(ctx context.Context, network, hostPort string) (net.Conn, error) {
		conn, err := policy.DialContext(ctx, network, hostPort)
		if err != nil {
			return nil, err
		}
		return newPatientConn(conn), nil
	}
	return &http.Transport{
		Proxy: nil, // a proxy would connect for us, without the policy
		DialContext: func(ctx context.Context, network, hostPort string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(connecting(ctx), o.Timeout)
			defer cancel()
			conn, err := dial(ctx, network, hostPort)
			if err != nil {
				return nil, err
			}
			return newQuietConn(conn), nil
		},
		DialTLSContext: func(ctx context.Context, network, hostPort string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(connecting(ctx), o.Timeout)
			defer cancel()
			conn, err := dial(ctx, network, hostPort)
			if err != nil {
				return nil, err
			}
			return handshake(ctx, conn, hostPort, config)
		},
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           idleConnections,
		MaxIdleConnsPerHost:    o.PerHost,
		IdleConnTimeout:        idleTimeout,
		DisableCompression:     true, // an answer is never decompressed
		MaxResponseHeaderBytes: maxAnswerHeader,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: maxAhead,
			SendPingTimeout:           quietTimeout,
			PingTimeout:               pingTimeout,
		},
	}
}

// handshake sets up TLS on a connection. It returns a *tls.Conn for HTTP/2, because
// net/http recognises HTTP/2 by this type.
func handshake(ctx context.Context, conn net.Conn, hostPort string, config *tls.Config) (net.Conn, error) {
	host, _, err := net.SplitHostPort(hostPort)
	if err == nil {
		config = config.Clone()
		config.ServerName = host
		secure := tls.Client(conn, config)
		done := shaking(ctx)
		err = secure.HandshakeContext(ctx)
		done()
		if err == nil {
			if secure.ConnectionState().NegotiatedProtocol == "h2" {
				return secure, nil
			}
			return newQuietConn(secure), nil
		}
	}
	conn.Close()
	return nil, err
}
