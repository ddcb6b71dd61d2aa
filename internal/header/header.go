// Package header edits the headers of a request that becomes a task. It removes headers
// that a client must not send to the endpoint, and preferences that the gateway has
// handled.
package header

import (
	"net/http"
	"strings"
)

// Drop removes a header from a request, and every other header that the endpoint cannot
// distinguish from it: CGI, FastCGI, WSGI and Rack turn both Beam-Task-Id and
// Beam_Task_Id into HTTP_BEAM_TASK_ID.
func Drop(h http.Header, name string) {
	for key := range h {
		if sameVariable(key, name) {
			delete(h, key)
		}
	}
}

// sameVariable reports whether two header names map to the same CGI variable (RFC 3875,
// section 4.1.18).
func sameVariable(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if variableByte(a[i]) != variableByte(b[i]) {
			return false
		}
	}
	return true
}

func variableByte(c byte) byte {
	switch {
	case c == '-':
		return '_'
	case 'a' <= c && c <= 'z':
		return c - 'a' + 'A'
	default:
		return c
	}
}

// connectionOptions are the options that a client's Connection header may contain. Any
// other option names a header that a proxy removes: a client could have the task's ID
// removed, or a header that the operator has set.
var connectionOptions = []string{"close", "keep-alive", "te", "upgrade", "http2-settings", "proxy-connection"}

// LimitConnection removes every option that is not one of connectionOptions from the
// Connection header of a task.
func LimitConnection(h http.Header) {
	lines := h["Connection"]
	if len(lines) == 0 {
		return
	}
	h["Connection"] = filterList(lines, func(option string) bool {
		return containsFold(connectionOptions, option)
	})
	if len(h["Connection"]) == 0 {
		h.Del("Connection")
	}
}

// filterList returns the lines of a header whose value is a list, with only the
// elements that keep accepts. A line that loses no element is returned byte for byte.
func filterList(lines []string, keep func(element string) bool) []string {
	var kept []string
	for _, line := range lines {
		var elements []string
		dropped := false
		for _, element := range SplitList(line) {
			if keep(strings.TrimSpace(element)) {
				elements = append(elements, element)
			} else {
				dropped = true
			}
		}
		switch {
		case !dropped:
			kept = append(kept, line)
		case len(elements) > 0:
			kept = append(kept, strings.TrimSpace(strings.Join(elements, ",")))
		}
	}
	return kept
}

// SplitList splits a list at its commas. It does not split at commas within a quoted
// string (RFC 9110, section 5.6.4).
func SplitList(line string) []string {
	var elements []string
	start, quoted := 0, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == ',' && !quoted:
			elements = append(elements, line[start:i])
			start = i + 1
		}
	}
	return append(elements, line[start:])
}

func containsFold(list []string, s string) bool {
	for _, element := range list {
		if strings.EqualFold(element, s) {
			return true
		}
	}
	return false
}

// hasOption reports whether the Connection header contains an option.
func hasOption(h http.Header, option string) bool {
	for _, line := range h["Connection"] {
		for element := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(element), option) {
				return true
			}
		}
	}
	return false
}

// IsUpgrade reports whether a server may answer a request by switching to another
// protocol (RFC 9110, section 7.8). A client that names a protocol without the
// Connection option upgrade, or with a method other than GET, gets a response.
//
// An offer of HTTP/2 or TLS does not count. Clients add it to ordinary requests: Java's
// own client and curl --http2 send it with each one. A server that ignores it answers
// as usual (RFC 9113, section 3.1; RFC 2817, section 3.1).
func IsUpgrade(r *http.Request) bool {
	offers := r.Header["Upgrade"]
	if len(offers) == 0 || r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) || !hasOption(r.Header, "upgrade") {
		return false
	}
	for _, line := range offers {
		for offer := range strings.SplitSeq(line, ",") {
			protocol, _, _ := strings.Cut(strings.TrimSpace(offer), "/")
			if protocol != "" && !strings.EqualFold(protocol, "h2c") && !strings.EqualFold(protocol, "TLS") {
				return true
			}
		}
	}
	return false
}

// DropUpgrade removes the client's offer to upgrade the connection from a task's
// request. If the endpoint accepted the offer, there would be no response.
func DropUpgrade(h http.Header) {
	if len(h["Upgrade"]) == 0 {
		return
	}
	h.Del("Upgrade")
	h.Del("Http2-Settings")
	h.Del("Connection")
}
