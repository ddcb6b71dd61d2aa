package callback

import (
	"net/http"
	"strings"
	"sync"
)

// dropHeader removes a header from a request, and every other header that the
// endpoint cannot tell from it: CGI, FastCGI, WSGI and Rack call both Beam-Task-Id
// and Beam_Task_Id HTTP_BEAM_TASK_ID.
func dropHeader(header http.Header, name string) {
	for key := range header {
		if sameVariable(key, name) {
			delete(header, key)
		}
	}
}

// sameVariable reports whether two header names become one CGI variable
// (RFC 3875, section 4.1.18).
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

// connectionOptions are the options that a client's Connection header can ask for.
// Any other option names a header that a proxy removes, and the client could name
// the task's ID or what the operator has set.
var connectionOptions = []string{"close", "keep-alive", "te", "upgrade", "http2-settings", "proxy-connection"}

// limitConnection removes from a task's Connection header every option that names
// a header of the request itself.
func limitConnection(header http.Header) {
	lines := header["Connection"]
	if len(lines) == 0 {
		return
	}
	header["Connection"] = filterList(lines, func(option string) bool {
		return containsFold(connectionOptions, option)
	})
	if len(header["Connection"]) == 0 {
		header.Del("Connection")
	}
}

// takePreferences removes from a request what a queue has answered for it: the
// preferences wait and respond-async (RFC 7240, sections 4.1 and 4.3). The others
// are the endpoint's.
func takePreferences(header http.Header) {
	lines := header["Prefer"]
	if len(lines) == 0 {
		return
	}
	header["Prefer"] = filterList(lines, func(preference string) bool {
		name, _, _ := strings.Cut(preference, ";")
		name, _, _ = strings.Cut(name, "=")
		name = strings.TrimSpace(name)
		return !strings.EqualFold(name, "wait") && !strings.EqualFold(name, "respond-async")
	})
	if len(header["Prefer"]) == 0 {
		header.Del("Prefer")
	}
}

// filterList returns the lines of a header whose value is a list, with those of
// its elements that keep accepts. Lines of which it removes nothing stay byte for
// byte.
func filterList(lines []string, keep func(element string) bool) []string {
	var kept []string
	for _, line := range lines {
		var elements []string
		dropped := false
		for _, element := range splitList(line) {
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

// splitList splits a list at its commas, but not at those within a quoted string
// (RFC 9110, section 5.6.4).
func splitList(line string) []string {
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

// hasOption reports whether a Connection header has an option.
func hasOption(header http.Header, option string) bool {
	for _, line := range header["Connection"] {
		for element := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(element), option) {
				return true
			}
		}
	}
	return false
}

// inFlight are the tasks that endpoints are at work on in this process.
var inFlight flights

type flights struct{ tasks sync.Map } // the exchanges, by task ID

// add notes a task until the function that it returns is called.
func (f *flights) add(x *exchange) (remove func()) {
	f.tasks.Store(x.rec.ID, x)
	return func() { f.tasks.Delete(x.rec.ID) }
}

// headerOf returns the header of the ID of the task that a request belongs to
// because an endpoint within this process made it: httpInclude of Caddy's templates
// copies the header of the request that it answers. Clients cannot claim that.
// Their requests came over a connection, and the server has noted its address.
func (f *flights) headerOf(r *http.Request) (header string, ok bool) {
	if r.Context().Value(http.LocalAddrContextKey) != nil {
		return "", false
	}
	for name, values := range r.Header {
		if len(values) != 1 || len(values[0]) != taskIDLength {
			continue
		}
		x, _ := f.tasks.Load(values[0])
		if x, ok := x.(*exchange); ok && strings.EqualFold(name, x.h.TaskHeader) {
			return x.h.TaskHeader, true
		}
	}
	return "", false
}

// taskIDLength is the length of a task's ID in bytes.
const taskIDLength = 36
