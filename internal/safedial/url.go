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
)

// maxURL bounds what a client makes us keep, log and send to receivers for
// each task, in bytes.
const maxURL = 2048

// maxHost is the longest host name there is, in bytes (RFC 1035, section
// 2.3.4). A longer one would take a place among the hosts we keep count of.
const maxHost = 253

// CheckURL parses a URL that a client, or the operator, wrote and says whether
// the policy permits it as far as can be told without looking anything up. Its
// errors are one short phrase each, fit to be shown to the client: they never
// hold a userinfo or a query. A refused destination is a *RefusedError.
//
// The URL is normalised, so that its String is what goes onto a request line: what
// cannot stand in a path or a query is encoded, and there is no fragment. Space
// around it is an error: it would become part of the path.
//
// An empty port ("http://h:/") is the scheme's default, as RFC 3986, section
// 6.2.3, has it.
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
		// The parser's own errors quote the URL, passwords and all.
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
		// Written with percent signs, which the parser has undone.
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
	if len(u.String()) > maxURL {
		return nil, fmt.Errorf("longer than %d bytes", maxURL)
	}
	return u, nil
}

// escapeQuery encodes what a query cannot have (RFC 3986, section 3.4): people
// write "name=John Smith" and "name=Jürgen", and servers answer 400 to both. What
// is encoded already stays so.
func escapeQuery(query string) string {
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

// checkHost refuses what can be told from the host's spelling alone.
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
	// RFC 6761, section 6.3: these names are the loopback and nothing else.
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

// HostPort names the endpoint that a checked URL leads to. Limits per host
// count by it, or "C.example", "c.example." and "c.example:80" would have one
// each.
func HostPort(u *url.URL) string {
	addr, host := splitHost(u)
	if addr.IsValid() {
		host = addr.Unmap().String()
	}
	port := u.Port()
	if port == "" {
		port = fmt.Sprint(schemePort(u.Scheme))
	}
	return net.JoinHostPort(host, port)
}

// splitHost returns the host of a URL as an address if that is what it is, and
// as a canonical name if not.
func splitHost(u *url.URL) (netip.Addr, string) {
	if strings.HasPrefix(u.Host, "[") {
		addr, err := netip.ParseAddr(u.Hostname())
		if err == nil {
			return addr, ""
		}
	}
	// Only IPv4: outside of brackets a colon, full-width or not, is no address.
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

// canonicalName is a folded host name without the dot at its end.
func canonicalName(host string) string { return strings.TrimSuffix(fold(host), ".") }

// fold puts a host into lower case, and does to it the most misleading of what
// net/http does by IDNA (UTS 46) before it dials: "１２７。０.０.１" becomes
// 127.0.0.1. It makes an early answer of what the dialer would refuse; it is
// not meant to find everything.
func fold(host string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '。' || r == '．' || r == '｡':
			return '.'
		case r >= '！' && r <= '～': // full-width forms of ! to ~
			r = r - '！' + '!'
		case unicode.Is(unicode.Cf, r): // soft hyphens, joiners: IDNA drops them
			return -1
		}
		return unicode.ToLower(r)
	}, host)
}

// nameProblem says why a canonical name cannot be a host name, or nothing if
// it can. It names no characters outside ASCII: which of them make a name is
// for IDNA to say, when net/http dials.
func nameProblem(name string) string {
	// Docker and DNS-SD have underscores in names.
	const characters = "abcdefghijklmnopqrstuvwxyz0123456789-_."
	switch {
	case name == "":
		return "has no host"
	case len(name) > maxHost:
		return fmt.Sprintf("has a host longer than %d bytes", maxHost)
	case strings.HasPrefix(name, "."), strings.HasSuffix(name, "."), strings.Contains(name, ".."):
		return "has a host with an empty part"
	case strings.ContainsFunc(name, func(r rune) bool { return r <= 127 && !strings.ContainsRune(characters, r) }):
		return "has a character in its host that no host name has"
	case endsInNumber(name):
		// 2130706433, 0177.0.0.1, 0x7f.1 and 127.1 are all 127.0.0.1 to
		// inet_aton(3), which the system's resolver uses.
		return "has an address in a form that is not accepted"
	}
	return ""
}

// endsInNumber reports whether the last part of a name is a number, in any
// script. No top-level domain is one (RFC 3696, section 2), so the name is a
// spelling of an address; browsers decide by the same rule (WHATWG URL, "ends
// in a number").
func endsInNumber(name string) bool {
	last := name[strings.LastIndex(name, ".")+1:]
	if digits, isHex := strings.CutPrefix(last, "0x"); isHex {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return !strings.ContainsFunc(last, func(r rune) bool { return !unicode.IsNumber(r) })
}

func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}
