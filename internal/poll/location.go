package poll

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxURI bounds the stored URI of a poll, in bytes. It must fit in the task's record.
const maxURI = 8 << 10

// locate sets the URI and the host of x's poll to the location that its answer names at
// a source. It reports false if the answer names none.
func (r *Rules) locate(x *Exchange, s Source) (found bool, err error) {
	text := x.Answer.find(s)
	if text == "" {
		return false, nil
	}
	base, err := url.ParseRequestURI(x.Poll.URI)
	if err != nil {
		return false, fmt.Errorf("parsing the URI of the last request: %w", err)
	}
	base.Scheme, base.Host, base.User = "http", x.Poll.Host, nil
	// The error of url.Parse contains the URL, and that may contain credentials.
	named, err := url.Parse(text)
	if err != nil {
		return false, fmt.Errorf("%w: it is not a URL", ErrLocation)
	}
	u := base.ResolveReference(named)
	switch {
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return false, fmt.Errorf("%w: it is not an HTTP URL", ErrLocation)
	case u.User != nil:
		return false, fmt.Errorf("%w: it contains credentials", ErrLocation)
	case !r.follows(u, x.Home):
		return false, fmt.Errorf("%w: %q is not one of poll's hosts", ErrLocation, u.Host)
	}
	uri := u.RequestURI()
	if len(uri) > maxURI {
		return false, fmt.Errorf("%w: it is longer than %d bytes", ErrLocation, maxURI)
	}
	x.Poll.URI, x.Poll.Host = uri, u.Host
	return true, nil
}

// CheckHosts returns an error that names the first value that is not a host with an
// optional port, as in [Rules].Hosts.
func CheckHosts(values []string) error {
	for _, value := range values {
		u, err := url.Parse("//" + value)
		if err != nil || u.Host != value || u.Hostname() == "" || strings.Contains(value, "*") || !isPort(u.Port()) {
			return fmt.Errorf("hosts: %q is not a host such as api.example or api.example:8443", value)
		}
	}
	return nil
}

// isPort reports whether s is the number of a port, or empty.
func isPort(s string) bool {
	n, err := strconv.Atoi(s)
	return s == "" || err == nil && n > 0 && n <= 65535
}

// follows reports whether a location may be polled: its host is that of the task's
// request, or one that the operator has named.
func (r *Rules) follows(u *url.URL, home string) bool {
	host := withoutPort(u.Host, u.Scheme)
	return slices.ContainsFunc(append([]string{home}, r.Hosts...), func(allowed string) bool {
		return host == withoutPort(allowed, u.Scheme)
	})
}

// withoutPort returns a host in lower case, without the scheme's default port.
func withoutPort(host, scheme string) string {
	port := "80"
	if scheme == "https" {
		port = "443"
	}
	host = strings.ToLower(host)
	if name, p, err := net.SplitHostPort(host); err == nil && p == port {
		if strings.Contains(name, ":") {
			return "[" + name + "]"
		}
		return name
	}
	return host
}
