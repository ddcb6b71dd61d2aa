package safedial_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

// urlOf returns a URL with the address as its host.
func urlOf(addr netip.Addr) string {
	if addr.Is4() {
		return "http://" + addr.String() + "/"
	}
	return "http://[" + addr.String() + "]/"
}

func mapped(addr netip.Addr) netip.Addr { return netip.AddrFrom16(addr.As16()) }

func assertRefused(t *testing.T, p *safedial.Policy, url string) {
	t.Helper()
	_, err := p.CheckURL(url)
	if _, ok := errors.AsType[*safedial.RefusedError](err); !ok {
		t.Errorf("%s: got error %v, want a refusal", url, err)
	}
}

func assertPermitted(t *testing.T, p *safedial.Policy, url string) {
	t.Helper()
	if _, err := p.CheckURL(url); err != nil {
		t.Errorf("%s: %v", url, err)
	}
}

// The blocks, written out once more so that a slip in the table shows: the
// first and last address of each, and the neighbours just outside of it,
// unless they belong to another block or do not exist.
func TestBlocksAreRefusedWhole(t *testing.T) {
	t.Parallel()
	blocks := []struct{ name, before, first, last, after string }{
		{"0/8, this network", "", "0.0.0.0", "0.255.255.255", "1.0.0.0"},
		{"10/8, private", "9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"},
		{"100.64/10, carrier-internal", "100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"},
		{"127/8, loopback", "126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"},
		{"168.63.129.16, Azure", "168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17"},
		{"169.254/16, link-local", "169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"},
		{"172.16/12, private", "172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"},
		{"192.0.0/24, protocols", "191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"},
		{"192.0.2/24, documentation", "192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"},
		{"192.88.99/24, 6to4 relays", "192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"},
		{"192.168/16, private", "192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"},
		{"198.18/15, benchmarks", "198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"},
		{"198.51.100/24, documentation", "198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"},
		{"203.0.113/24, documentation", "203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"},
		{"224/4, multicast", "223.255.255.255", "224.0.0.0", "239.255.255.255", ""},
		{"240/4, reserved and broadcast", "", "240.0.0.0", "255.255.255.255", ""},

		{"all before 2000::/3", "", "::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"},
		{"all after 2000::/3", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		{"2001::/23, protocols and Teredo", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"},
		{"2001:db8::/32, documentation", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"},
		{"2002::/16, 6to4", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"},
		{"3fff::/20, documentation", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"},
	}
	var policy safedial.Policy
	for _, b := range blocks {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			for _, refused := range []string{b.first, b.last} {
				addr := netip.MustParseAddr(refused)
				assertRefused(t, &policy, urlOf(addr))
				assertRefused(t, &policy, urlOf(mapped(addr)))
				assertPermitted(t, policy.Trusted(), urlOf(addr))
			}
			for _, permitted := range []string{b.before, b.after} {
				if permitted == "" {
					continue
				}
				addr := netip.MustParseAddr(permitted)
				assertPermitted(t, &policy, urlOf(addr))
				assertPermitted(t, &policy, urlOf(mapped(addr)))
			}
		})
	}
}

func TestPublicAddressesArePermitted(t *testing.T) {
	t.Parallel()
	var policy safedial.Policy
	for _, addr := range []string{
		"1.1.1.1", "8.8.8.8", "93.184.215.14", "151.101.1.69", "::ffff:8.8.8.8",
		"2606:4700:4700::1111", "2a00:1450:4001:82a::200e", "2620:fe::fe",
	} {
		assertPermitted(t, &policy, urlOf(netip.MustParseAddr(addr)))
	}
}

func TestIPv4InsideIPv6IsRefused(t *testing.T) {
	t.Parallel()
	var policy safedial.Policy
	for _, addr := range []string{
		"::ffff:127.0.0.1", "::ffff:a9fe:a9fe", // mapped (RFC 4291, section 2.5.5.2)
		"::127.0.0.1", "::8.8.8.8", // compatible, deprecated (section 2.5.5.1)
		"64:ff9b::169.254.169.254", "64:ff9b::8.8.8.8", "64:ff9b:1::10.0.0.1", // NAT64 (RFC 6052, RFC 8215)
		"2002:7f00:1::", "2002:a9fe:a9fe::1", // 6to4 (RFC 3056)
		"2001:0:4136:e378:8000:63bf:80ff:fffe", // Teredo (RFC 4380)
		"::ffff:0:127.0.0.1",                   // SIIT (RFC 7915)
	} {
		assertRefused(t, &policy, urlOf(netip.MustParseAddr(addr)))
	}
}

func TestCloudMetadataServicesAreRefused(t *testing.T) {
	t.Parallel()
	var policy safedial.Policy
	for _, addr := range []string{
		"169.254.169.254", "169.254.170.2", "fd00:ec2::254", // AWS
		"168.63.129.16",   // Azure
		"100.100.100.200", // Alibaba
		"192.0.0.192",     // Oracle
		"fd20:ce::254",    // Google
	} {
		assertRefused(t, &policy, urlOf(netip.MustParseAddr(addr)))
	}
}
