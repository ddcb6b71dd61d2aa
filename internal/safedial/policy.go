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
// CheckURL resolves no names; it exists to answer the client early. DialContext is
// the protection: it checks the address that the socket is about to connect to, after
// the name is resolved. A name that resolves differently the second time (DNS
// rebinding), a redirect, and a spelling that parsers read differently all meet the
// same check.
//
// A transport reuses connections without asking its dialer. Give each Policy a
// transport of its own, without a Proxy, and with a DialTLSContext only if that calls
// DialContext, as that of internal/send does.
package safedial

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Config is what an operator can configure of a Policy, as written in the Caddyfile.
type Config struct {
	// Allow are destinations that are permitted although they are not public: a CIDR,
	// an address, or a host name, whatever it resolves to. Ports are not affected.
	Allow []string

	// Deny are destinations that are refused, even if they are public, allowed or the
	// operator's own. A name denies only that name: another name may lead to the same
	// machine. A CIDR or an address denies the machine.
	Deny []string

	// Ports are the permitted ports, or "any" alone. Default: 80 443.
	Ports []string

	// Resolver looks host names up. Default: net.DefaultResolver.
	Resolver *net.Resolver
}

// A Policy decides which destinations are permitted. The zero Policy permits
// public addresses at ports 80 and 443. Policies are immutable and may be used
// from several goroutines at once.
type Policy struct {
	allow, deny destinations
	ports       []uint16 // empty for the default
	anyPort     bool
	trusted     bool
	resolver    *net.Resolver
}

// defaultPorts keep clients from sending requests to other services of public hosts,
// such as mail servers (cross-protocol attacks).
var defaultPorts = []uint16{80, 443}

// NewPolicy returns the policy of a configuration. Its errors quote the invalid
// value.
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

// Trusted returns the policy for URLs of the operator: all addresses and ports are
// permitted except those in Deny.
func (p *Policy) Trusted() *Policy {
	trusted := *p
	trusted.trusted = true
	return &trusted
}

// A RefusedError means that the policy does not permit a destination. A retry does not
// help, unless the configuration or the addresses of the name change.
type RefusedError struct {
	// Reason is one short phrase that may be shown to the client. If the client gave a
	// name, it does not contain the address: otherwise clients could resolve names of
	// the gateway's private network.
	Reason string

	// Addr is the refused address, for operators only. It is invalid if a name or a
	// port was refused.
	Addr netip.Addr
}

func (e *RefusedError) Error() string { return e.Reason }

// verdictOn returns why addr is refused, such as "a private address", or "" if
// it is permitted. exempt says that the name of the host is allowed.
func (p *Policy) verdictOn(addr netip.Addr, exempt bool) string {
	if !addr.IsValid() {
		return "not an address"
	}
	if addr.Zone() != "" {
		return "an address with a zone" // it has a meaning on this host only
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

// parsePort accepts only the shortest decimal form: each port has one spelling.
func parsePort(s string) (uint16, bool) {
	port, err := strconv.ParseUint(s, 10, 16)
	return uint16(port), err == nil && s[0] != '0'
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

// opens reports whether a host is on the list. A host with characters outside ASCII
// is not, even if it folds to a name that is: the resolver gets the host as written.
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

// parsePrefix is strict: a prefix with a mistake in it would permit too much, or deny
// nothing.
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
