package callback

import (
	"net"
	"net/netip"
	"strings"

	"golang.org/x/net/publicsuffix"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// quotaDomain returns whose share of the store a callback counts against: the
// registrable domain or the network of a URL that a request named, and nobody's for
// the operator's own.
func quotaDomain(callback *task.Callback, hostPort string) string {
	if callback == nil || callback.Trusted {
		return ""
	}
	return registrable(hostPort)
}

// registrable returns the registrable domain of a host and port, by the ICANN part
// of the public suffix list, or the network of an address: /24 or /48. In the
// private part of the list are the domains of hosting companies, where a thousand
// names cost no more than one.
func registrable(hostPort string) string {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		host = hostPort
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return networkOf(addr.Unmap().WithZone(""))
	}
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	suffix, icann := publicsuffix.PublicSuffix(name)
	for parent, ok := suffix, true; !icann && ok; {
		if _, parent, ok = strings.Cut(parent, "."); ok {
			suffix, icann = publicsuffix.PublicSuffix(parent)
		}
	}
	rest, ok := strings.CutSuffix(name, "."+suffix)
	if !ok {
		return name // a suffix itself, or localhost
	}
	return rest[strings.LastIndexByte(rest, '.')+1:] + "." + suffix
}

func networkOf(addr netip.Addr) string {
	bits := 48
	if addr.Is4() {
		bits = 24
	}
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return addr.String()
	}
	return prefix.String()
}
