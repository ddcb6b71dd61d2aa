package header

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// MaxWait bounds how long a client can keep a connection open with Prefer.
const MaxWait = time.Hour

// PreferredWait reads "Prefer: wait=N" (RFC 7240, section 4.3), N in seconds.
func PreferredWait(h http.Header) (time.Duration, bool) {
	value, ok := Preference(h, "wait")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return 0, false
	}
	return min(time.Duration(n)*time.Second, MaxWait), true
}

// Preference returns the value of a preference. The first one of a name counts (RFC
// 7240, section 2).
func Preference(h http.Header, name string) (value string, ok bool) {
	for _, line := range h.Values("Prefer") {
		for _, preference := range SplitList(line) { // as TakePreferences does
			preference, _, _ = strings.Cut(preference, ";")
			token, value, _ := strings.Cut(preference, "=")
			if strings.EqualFold(strings.TrimSpace(token), name) {
				return strings.Trim(strings.TrimSpace(value), `"`), true
			}
		}
	}
	return "", false
}

// TakePreferences removes the preferences that a queue handles from a request: wait and
// respond-async (RFC 7240, sections 4.1 and 4.3). Other preferences are for the
// endpoint and are kept.
func TakePreferences(h http.Header) {
	lines := h["Prefer"]
	if len(lines) == 0 {
		return
	}
	h["Prefer"] = filterList(lines, func(preference string) bool {
		name, _, _ := strings.Cut(preference, ";")
		name, _, _ = strings.Cut(name, "=")
		name = strings.TrimSpace(name)
		return !strings.EqualFold(name, "wait") && !strings.EqualFold(name, "respond-async")
	})
	if len(h["Prefer"]) == 0 {
		h.Del("Prefer")
	}
}
