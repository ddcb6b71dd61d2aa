// Package safedial decides where callbacks may go. A URL in a client's request
// is an order to this host to connect somewhere: without a check, to the
// database beside it or to the cloud's credentials (server-side request
// forgery, CWE-918).
//
// Two checks use one Policy:
//
//	policy, err := safedial.NewPolicy(safedial.Config{Allow: …, Deny: …, Ports: …})
//	url, err := policy.CheckURL(raw)                                // at admission
//	transport := &http.Transport{DialContext: policy.DialContext}   // at delivery
//
// CheckURL looks nothing up and is there to answer early. What protects is
// DialContext: it judges the address that the socket is about to connect to,
// after the name is resolved, so that a name which resolves differently the
// second time (DNS rebinding), a redirect, or a spelling that one parser reads
// as a name and another as an address all end at the same table.
//
// A transport keeps connections and hands them out by host and port, unseen by
// its dialer: give each Policy a transport of its own, with neither a Proxy
// nor a DialTLSContext of its own dialer: internal/send wraps DialContext in one.
package safedial

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Config is the operator's part of a Policy, in the words of the Caddyfile.
type Config struct {
	// Allow are destinations that are permitted though they are not public:
	// a CIDR, an address, or a host name, whatever that name resolves to. It
	// does not open ports.
	Allow []string

	// Deny are destinations that are refused, even if they are public, allowed
	// or the operator's own. A name stops that name only: another one may lead
	// to the same machine, which only a CIDR or an address stops.
	Deny []string

	// Ports are the permitted ports, or "any" alone. Default: 80 443.
	Ports []string

	// Resolver looks host names up. Default: net.DefaultResolver.
	Resolver *net.Resolver
}

// A Policy says which destinations are permitted. The zero Policy permits
// public addresses at ports 80 and 443. Policies are immutable and may be used
// from several goroutines at once.
type Policy struct {
	allow, deny destinations
	ports       []uint16 // empty for the default
	anyPort     bool
	trusted     bool
	resolver    *net.Resolver
}

// defaultPorts keep a client from talking to what listens elsewhere on public
// hosts, such as mail servers (cross-protocol attacks).
var defaultPorts = []uint16{80, 443}

// NewPolicy reads the operator's words. Its errors name the bad one.
func NewPolicy(c Config) (*Policy, error) {
	p := &Policy{resolver: c.Resolver}
	var err error
	if p.allow, err = parseDestinations(c.Allow); err != nil {
		return nil, fmt.Errorf("allow: %w", err)
	}
	if p.deny, err = parseDestinations(c.Deny); err != nil {
		return nil, fmt.Errorf("deny: %w", err)
	}
	if slices.Equal(c.Ports, []string{"any"}) {
		p.anyPort = true
		return p, nil
	}
	for _, word := range c.Ports {
		port, ok := parsePort(word)
		if !ok {
			return nil, fmt.Errorf("ports: %q is not a port from 1 to 65535, nor \"any\" alone", word)
		}
		p.ports = append(p.ports, port)
	}
	return p, nil
}

// Trusted returns the policy for URLs that the operator wrote: any address and
// any port, save what Deny names.
func (p *Policy) Trusted() *Policy {
	trusted := *p
	trusted.trusted = true
	return &trusted
}

// A RefusedError is a destination that the policy does not permit. Trying
// again does not help: only a change of the configuration, or of the name's
// addresses, would.
type RefusedError struct {
	// Reason is one short phrase, fit to be shown to the client. If the client
	// gave a name it does not tell the address behind it: that would make the
	// gateway an oracle for the names of the network it stands in.
	Reason string

	// Addr is the refused address, for the operator's eyes. It is invalid if a
	// name or port was refused.
	Addr netip.Addr
}

func (e *RefusedError) Error() string { return e.Reason }

// verdictOn returns what addr is that keeps a callback from it, as in "a
// private address", or nothing if it is permitted. An address is exempt from
// the table if the name that led to it is allowed.
func (p *Policy) verdictOn(addr netip.Addr, exempt bool) string {
	if !addr.IsValid() {
		return "not an address"
	}
	if addr.Zone() != "" {
		return "an address with a zone" // means something on this host only
	}
	addr = addr.Unmap() // ::ffff:10.0.0.1 connects to 10.0.0.1
	switch {
	case p.deny.hasAddr(addr):
		return "a denied address"
	case p.trusted, exempt, p.allow.hasAddr(addr):
		return ""
	default:
		return notPublic(addr)
	}
}

func (p *Policy) permitsPort(port uint16) bool {
	switch {
	case port == 0:
		return false
	case p.trusted, p.anyPort:
		return true
	case len(p.ports) == 0:
		return slices.Contains(defaultPorts, port)
	default:
		return slices.Contains(p.ports, port)
	}
}

// parsePort refuses everything but the shortest decimal form, so that one port
// has one spelling.
func parsePort(s string) (uint16, bool) {
	port, err := strconv.ParseUint(s, 10, 16)
	return uint16(port), err == nil && port > 0 && s == strconv.FormatUint(port, 10)
}

// destinations is a list of addresses and host names.
type destinations struct {
	prefixes []netip.Prefix
	names    map[string]bool // as canonicalName gives them
}

func (d destinations) hasAddr(addr netip.Addr) bool {
	return slices.ContainsFunc(d.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// closes reports whether a canonical name is on the list.
func (d destinations) closes(name string) bool { return d.names[name] }

// opens reports whether a host is on the list as it is written. It must not be
// there by folding: what is looked up is the host, not what it resembles.
func (d destinations) opens(host string) bool {
	return isASCII(host) && d.names[canonicalName(host)]
}

func parseDestinations(words []string) (destinations, error) {
	d := destinations{names: make(map[string]bool)}
	for _, word := range words {
		if name := canonicalName(word); nameProblem(name) == "" && isASCII(word) {
			d.names[name] = true
			continue
		}
		prefix, err := parsePrefix(word)
		if err != nil {
			return destinations{}, err
		}
		d.prefixes = append(d.prefixes, prefix)
	}
	return d, nil
}

// parsePrefix is strict, for a prefix that is not what its writer meant opens
// too much or closes nothing.
func parsePrefix(word string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(word) // refuses zones
	if addr, addrErr := netip.ParseAddr(word); addrErr == nil && addr.Zone() == "" {
		prefix, err = netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	switch {
	case !isASCII(word):
		return netip.Prefix{}, fmt.Errorf("%q is not in ASCII: write a host name as xn--…", word)
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not a CIDR, an address or a host name", word)
	case prefix.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is IPv4 written as IPv6: write it as IPv4", word)
	case prefix != prefix.Masked():
		return netip.Prefix{}, fmt.Errorf("%q is within %s: write that, or the address alone", word, prefix.Masked())
	}
	return prefix, nil
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > 127 })
}
