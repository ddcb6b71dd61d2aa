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
	// maxAnswerHeader keeps a receiver from filling memory with headers.
	maxAnswerHeader = 64 << 10
	// maxAhead is how much of an answer over HTTP/2 may be on its way before it is
	// read; the default of 4 MiB for each attempt would be the receivers' to fill.
	maxAhead = 64 << 10
	// idleConnections and idleTimeout are how many connections are kept for
	// reuse, and how long.
	idleConnections = 1024
	idleTimeout     = 90 * time.Second
	// quietTimeout and pingTimeout are when a connection over HTTP/2 on which
	// nothing comes is tried, and given up. All attempts to a host go over it: one
	// that died without a word would fail them for as long as TCP resends.
	quietTimeout = 10 * time.Second
	pingTimeout  = 5 * time.Second
	// maxStrangers bounds the hosts of which an http.Transport remembers, for good
	// and at about 4 KB each, that somebody waited for a connection.
	maxStrangers = 2048
)

// connections are those to the hosts that a policy permits.
type connections struct {
	create func() *http.Transport

	mu        sync.Mutex
	transport *http.Transport
	strangers map[string]struct{} // hosts that left no connection to be used again
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

// stranger notes that an attempt to a host left no connection to be used again.
// After many such hosts there is a new transport. Hosts that do keep connections
// are connected to once more.
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

// newTransport makes a transport that connects only where the policy permits.
func newTransport(o Options, policy *safedial.Policy) *http.Transport {
	config := new(tls.Config)
	if o.TLS != nil {
		config = o.TLS.Clone()
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	// A transport goes on connecting when the attempt is over. Without limits of
	// their own, connections that never come about would pile up.
	dial := func(ctx context.Context, network, hostPort string) (net.Conn, error) {
		conn, err := policy.DialContext(ctx, network, hostPort)
		if err != nil {
			return nil, err
		}
		return newPatientConn(conn), nil
	}
	return &http.Transport{
		Proxy: nil, // a proxy would connect for us, unchecked
		DialContext: func(ctx context.Context, network, hostPort string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, o.Timeout)
			defer cancel()
			conn, err := dial(ctx, network, hostPort)
			if err != nil {
				return nil, err
			}
			return newQuietConn(conn), nil
		},
		DialTLSContext: func(ctx context.Context, network, hostPort string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, o.Timeout)
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
		DisableCompression:     true, // an answer is never expanded
		MaxResponseHeaderBytes: maxAnswerHeader,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: maxAhead,
			SendPingTimeout:           quietTimeout,
			PingTimeout:               pingTimeout,
		},
	}
}

// handshake sets up TLS on a connection. net/http recognises HTTP/2 by the type of
// what it returns.
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
