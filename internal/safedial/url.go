package safedial

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxURL is the longest URL of a callback, in bytes. It bounds what a client makes the
// gateway store for each task.
const maxURL = 2048

// maxHost and maxLabel are the longest host name and the longest of its labels, in bytes
// (RFC 1035, section 2.3.4). A longer one can never be resolved, and would be stored as a
// host.
const maxHost, maxLabel = 253, 63

// CheckURL parses the URL of a callback and checks all of the policy that can be
// checked without resolving a name. Its errors are short phrases that may be shown to
// the client: they contain neither userinfo nor query. For a refused destination the
// error is a [*RefusedError].
//
// The returned URL is normalised: characters that a path or a query cannot contain are
// encoded, and the fragment is removed. Surrounding space is an error, because it
// would become part of the path. An empty port ("http://h:/") means the default port
// of the scheme (RFC 3986, section 6.2.3).
func (p *Policy) CheckURL(raw string) (*url.URL, error) {
	if len(raw) > maxURL {
		return nil, fmt.Errorf("longer than %d bytes", maxURL)
	}
	if !utf8.ValidString(raw) || strings.ContainsFunc(raw, unicode.IsControl) {
		return nil, errors.New("has a control or invalid character")
	}
	if strings.TrimSpace(raw) != raw {
		return nil, errors.New("has space around it")
	}
	u, err := url.Parse(raw)
	if err != nil {
		// The parser's error quotes the URL, with passwords in it.
		return nil, errors.New("not a valid URL")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("not an http or https URL")
	case u.User != nil:
		return nil, errors.New("has a user name or password")
	case u.Hostname() == "":
		return nil, errors.New("has no host")
	case !utf8.ValidString(u.Host), strings.ContainsFunc(u.Host, unicode.IsControl):
		// The parser has decoded percent escapes in the host.
		return nil, errors.New("has a control or invalid character")
	}
	if err := p.checkHost(u); err != nil {
		return nil, err
	}
	port := schemePort(u.Scheme)
	if u.Port() != "" {
		var ok bool
		if port, ok = parsePort(u.Port()); !ok {
			return nil, errors.New("has a bad port")
		}
	}
	if err := p.checkPort(port); err != nil {
		return nil, err
	}
	u.RawQuery = escapeQuery(u.RawQuery)
	u.Fragment, u.RawFragment = "", "" // never sent (RFC 9110, section 7.1)
	// Encoding makes at most three bytes of one, so the length of a short URL needs no check.
	if 3*len(raw) > maxURL && len(u.String()) > maxURL {
		return nil, fmt.Errorf("longer than %d bytes", maxURL)
	}
	return u, nil
}

// escapeQuery encodes the bytes that a query cannot contain (RFC 3986, section 3.4),
// and keeps escapes. People write "name=John Smith" and "name=Jürgen", and servers
// answer 400 to both.
func escapeQuery(query string) string {
	if query == "" {
		return ""
	}
	var b strings.Builder
	for i, c := range []byte(query) {
		if isQueryByte(c) || c == '%' && isEscape(query[i:]) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func isQueryByte(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' ||
		strings.IndexByte("-._~!$&'()*+,;=:@/?", c) >= 0
}

// isEscape reports whether s begins with a percent sign and two hexadecimal digits.
func isEscape(s string) bool {
	if len(s) < 3 {
		return false
	}
	const digits = "0123456789abcdefABCDEF"
	return strings.IndexByte(digits, s[1]) >= 0 && strings.IndexByte(digits, s[2]) >= 0
}

// checkHost returns an error if the spelling of the host is enough to refuse it.
func (p *Policy) checkHost(u *url.URL) error {
	addr, name := splitHost(u)
	if addr.IsValid() {
		if verdict := p.verdictOn(addr, false); verdict != "" {
			return &RefusedError{Reason: fmt.Sprintf("host %s is %s", addr, verdict), Addr: addr}
		}
		return nil
	}
	switch problem := nameProblem(name); {
	case problem != "":
		return errors.New(problem)
	case p.deny.closes(name):
		return &RefusedError{Reason: fmt.Sprintf("host %s is denied", name)}
	case !isLocalhost(name), p.allow.opens(u.Hostname()):
		return nil
	}
	// RFC 6761, section 6.3: these names always resolve to the loopback.
	for _, loopback := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if p.verdictOn(loopback, false) == "" {
			return nil
		}
	}
	return &RefusedError{Reason: fmt.Sprintf("host %s is this machine", name)}
}

func (p *Policy) checkPort(port uint16) error {
	if !p.permitsPort(port) {
		return &RefusedError{Reason: fmt.Sprintf("port %d is not allowed", port)}
	}
	return nil
}

// HostPort returns the canonical host and port of a checked URL. Limits per host use
// it, so that "C.example", "c.example." and "c.example:80" are one host, and so are
// "bücher.example" and "xn--bcher-kva.example".
func HostPort(u *url.URL) string {
	addr, host := splitHost(u)
	if addr.IsValid() {
		host = addr.Unmap().String()
	}
	port := u.Port()
	switch {
	case port == "":
		port = fmt.Sprint(schemePort(u.Scheme))
	case host == u.Hostname():
		return u.Host // it has that form already
	}
	return net.JoinHostPort(host, port)
}

// ParseHostPort parses a host and port, such as "C.example:443", and returns the form that
// [HostPort] has. It checks no policy.
func ParseHostPort(s string) (string, error) {
	u, err := url.Parse("http://" + s)
	if err != nil || u.Host != s {
		return "", errors.New("not a host and port")
	}
	if _, ok := parsePort(u.Port()); !ok {
		return "", errors.New("has a bad port")
	}
	if addr, name := splitHost(u); !addr.IsValid() {
		if problem := nameProblem(name); problem != "" {
			return "", errors.New(problem)
		}
	}
	return HostPort(u), nil
}

// splitHost returns the host of a URL as an address or, if it is not an address, as a
// canonical name.
func splitHost(u *url.URL) (netip.Addr, string) {
	if strings.HasPrefix(u.Host, "[") {
		addr, err := netip.ParseAddr(u.Hostname())
		if err == nil {
			return addr, ""
		}
	}
	// Only IPv4: an IPv6 address needs brackets.
	if addr, err := netip.ParseAddr(fold(u.Hostname())); err == nil && addr.Is4() {
		return addr, ""
	}
	return netip.Addr{}, canonicalName(u.Hostname())
}

func schemePort(scheme string) uint16 {
	if scheme == "https" {
		return 443
	}
	return 80
}

// canonicalName returns a folded host name without a dot at its end.
func canonicalName(host string) string { return strings.TrimSuffix(fold(host), ".") }

// fold converts a host to lower case and, by IDNA, to ASCII, as net/http does before it
// dials: "１２７。０.０.１" becomes 127.0.0.1, and "bücher.example" becomes
// "xn--bcher-kva.example". A host that IDNA refuses keeps its characters; net/http would
// not send it.
func fold(host string) string {
	if !isASCII(host) {
		if ascii, err := idna.Lookup.ToASCII(host); err == nil {
			return ascii
		}
	}
	return strings.ToLower(host)
}

// nameProblem returns why a canonical name is not a valid host name, or "" if it is one.
func nameProblem(name string) string {
	// Docker and DNS-SD have underscores in names.
	const characters = "abcdefghijklmnopqrstuvwxyz0123456789-_."
	switch {
	case name == "":
		return "has no host"
	case len(name) > maxHost:
		return fmt.Sprintf("has a host longer than %d bytes", maxHost)
	case hasLongLabel(name):
		return fmt.Sprintf("has a host with a part longer than %d bytes", maxLabel)
	case strings.HasPrefix(name, "."), strings.HasSuffix(name, "."), strings.Contains(name, ".."):
		return "has a host with an empty part"
	case strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune(characters, r) }):
		return "has an invalid character in its host"
	case endsInNumber(name):
		// 2130706433, 0177.0.0.1, 0x7f.1 and 127.1 are all 127.0.0.1 to
		// inet_aton(3), which the system's resolver uses.
		return "has an address in a form that is not accepted"
	}
	return ""
}

// hasLongLabel reports whether a name has a label that is too long.
func hasLongLabel(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		if len(label) > maxLabel {
			return true
		}
	}
	return false
}

// endsInNumber reports whether the last label of a name is a number. No top-level domain
// is a number (RFC 3696, section 2), so the name is a spelling of an address. Browsers
// use the same rule (WHATWG URL, "ends in a number").
func endsInNumber(name string) bool {
	last := name[strings.LastIndex(name, ".")+1:]
	if digits, isHex := strings.CutPrefix(last, "0x"); isHex {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}
