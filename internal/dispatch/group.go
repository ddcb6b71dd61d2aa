package dispatch

import (
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// Group returns the group of a host, whose members share a limit: the registrable
// domain of a name, the /24 of an IPv4 address, or the /48 of an IPv6 address. One
// person can have any number of names or addresses within a group.
//
// Only the ICANN part of the public suffix list counts. The private part lists the
// domains under which hosting companies give away names for free: a thousand names
// there cost no more than one.
func Group(hostPort string) string {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		host = hostPort
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return network(addr)
	}
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	suffix, icann := publicsuffix.PublicSuffix(name)
	for !icann {
		_, parent, ok := strings.Cut(suffix, ".")
		if !ok {
			break // the list does not have this top-level domain
		}
		suffix, icann = publicsuffix.PublicSuffix(parent)
	}
	if len(name) <= len(suffix) {
		return name
	}
	rest := name[:len(name)-len(suffix)-1]
	return name[strings.LastIndexByte(rest, '.')+1:]
}

func network(addr netip.Addr) string {
	addr = addr.Unmap().WithZone("")
	bits := 48
	if addr.Is4() {
		bits = 24
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return addr.String()
	}
	return string(prefix.AppendTo(make([]byte, 0, len("ffff:ffff:ffff::/48"))))
}
