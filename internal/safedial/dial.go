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

	// A name may have several addresses, raced against each other (RFC 8305).
	// Every one of them comes by here, on its socket's way to connect.
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
		// The dialer reports the first address's error. A host that is down at
		// its public address is no refusal, whatever its other addresses are.
		return nil, fmt.Errorf("dialing %s: none of its permitted addresses answers", host)
	default:
		return nil, refused
	}
}

// checkConnection judges a connection that is about to be made to one address
// of host. What it does not understand it refuses.
func (p *Policy) checkConnection(host, network, address string) error {
	if network != "tcp4" && network != "tcp6" {
		return &RefusedError{Reason: fmt.Sprintf("network %s is not allowed", network)}
	}
	addrPort, err := netip.ParseAddrPort(address)
	if err != nil {
		return &RefusedError{Reason: fmt.Sprintf("host %s has an address that is none", host)}
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
