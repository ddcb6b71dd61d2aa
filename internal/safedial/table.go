package safedial

import "net/netip"

// A block is a range of refused addresses. is describes one of them in error
// messages.
type block struct {
	prefix netip.Prefix
	is     string
}

// refusedIPv4 are the blocks that are not global unicast according to IANA's
// registries (RFC 6890, RFC 5771), and one that a cloud uses for its own services. The
// predicates of netip are not enough: they accept 100.64/10, 198.18/15 and 240/4.
var refusedIPv4 = []block{
	{netip.MustParsePrefix("0.0.0.0/8"), "an unspecified address"},         // RFC 791; 0.0.0.0 reaches the host itself
	{netip.MustParsePrefix("10.0.0.0/8"), "a private address"},             // RFC 1918
	{netip.MustParsePrefix("100.64.0.0/10"), "a carrier-internal address"}, // RFC 6598; clouds and overlay networks use it
	{netip.MustParsePrefix("127.0.0.0/8"), "a loopback address"},           // RFC 1122
	{netip.MustParsePrefix("168.63.129.16/32"), "a cloud's own address"},   // Azure's WireServer: metadata, credentials
	{netip.MustParsePrefix("169.254.0.0/16"), "a link-local address"},      // RFC 3927; 169.254.169.254 is the metadata service of clouds
	{netip.MustParsePrefix("172.16.0.0/12"), "a private address"},          // RFC 1918
	{netip.MustParsePrefix("192.0.0.0/24"), "a protocol address"},          // RFC 6890; Oracle's metadata is at 192.0.0.192
	{netip.MustParsePrefix("192.0.2.0/24"), "a documentation address"},     // RFC 5737
	{netip.MustParsePrefix("192.88.99.0/24"), "a 6to4 relay address"},      // RFC 7526
	{netip.MustParsePrefix("192.168.0.0/16"), "a private address"},         // RFC 1918
	{netip.MustParsePrefix("198.18.0.0/15"), "a benchmarking address"},     // RFC 2544
	{netip.MustParsePrefix("198.51.100.0/24"), "a documentation address"},  // RFC 5737
	{netip.MustParsePrefix("203.0.113.0/24"), "a documentation address"},   // RFC 5737
	{netip.MustParsePrefix("224.0.0.0/4"), "a multicast address"},          // RFC 5771
	{netip.MustParsePrefix("240.0.0.0/4"), "a reserved address"},           // RFC 1112; 255.255.255.255 is the broadcast
}

// globalIPv6 is the block that IANA has allocated for global unicast. All other
// addresses are refused: loopback, fc00::/7, fe80::/10, and NAT64's 64:ff9b::/96 and
// the IPv4-compatible ::/96, which contain IPv4 addresses.
var globalIPv6 = netip.MustParsePrefix("2000::/3")

// refusedIPv6 are the blocks within globalIPv6 that are not public.
var refusedIPv6 = []block{
	{netip.MustParsePrefix("2001::/23"), "a protocol address"},          // RFC 2928; Teredo holds IPv4 addresses
	{netip.MustParsePrefix("2001:db8::/32"), "a documentation address"}, // RFC 3849
	{netip.MustParsePrefix("2002::/16"), "a 6to4 address"},              // RFC 3056; holds an IPv4 address
	{netip.MustParsePrefix("3fff::/20"), "a documentation address"},     // RFC 9637
}

// notPublic returns why an unmapped address is not public, or "" if it is.
func notPublic(addr netip.Addr) string {
	refused := refusedIPv4
	if addr.Is6() {
		if !globalIPv6.Contains(addr) {
			return "not a public address"
		}
		refused = refusedIPv6
	}
	for _, b := range refused {
		if b.prefix.Contains(addr) {
			return b.is
		}
	}
	return ""
}
