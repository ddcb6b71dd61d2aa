package safedial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
)

// DialContext connects to a host and port, at an address that the policy
// permits; it is made for http.Transport. If the policy refused every address
// of the host, the error is a *RefusedError. It keeps no state between calls
// and has no timeout but the context's.
func (p *Policy) DialContext(ctx context.Context, network, hostPort string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, fmt.Errorf("dialing: %w", err)
	}
	if name := canonicalName(host); p.deny.closes(name) {
		return nil, &RefusedError{Reason: fmt.Sprintf("host %s is denied", name)}
	}

	// A name may have several addresses, which are dialed in parallel (RFC 8305).
	// ControlContext is called for each of them before the socket connects.
	var permitted atomic.Bool
	dialer := net.Dialer{
		Resolver: p.resolver,
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			err := p.checkConnection(host, network, address)
			if err == nil {
				permitted.Store(true)
			}
			return err
		},
	}
	conn, err := dialer.DialContext(ctx, network, hostPort)
	var refused *RefusedError
	switch {
	case err == nil:
		return conn, nil
	case !errors.As(err, &refused):
		return nil, err
	case permitted.Load():
		// The dialer returns the error of the first address. If another address was
		// permitted and did not answer, the host is down rather than refused.
		return nil, fmt.Errorf("dialing %s: none of its permitted addresses answers", host)
	default:
		return nil, refused
	}
}

// checkConnection returns an error unless the policy permits a connection to one
// address of host. An address that cannot be parsed is refused.
func (p *Policy) checkConnection(host, network, address string) error {
	if network != "tcp4" && network != "tcp6" {
		return &RefusedError{Reason: fmt.Sprintf("network %s is not allowed", network)}
	}
	addrPort, err := netip.ParseAddrPort(address)
	if err != nil {
		return &RefusedError{Reason: fmt.Sprintf("host %s has an invalid address", host)}
	}
	addr := addrPort.Addr()
	if verdict := p.verdictOn(addr, p.allow.opens(host)); verdict != "" {
		verb := "resolves to"
		if _, err := netip.ParseAddr(host); err == nil {
			verb = "is"
		}
		return &RefusedError{Reason: fmt.Sprintf("host %s %s %s", host, verb, verdict), Addr: addr}
	}
	return p.checkPort(addrPort.Port())
}
