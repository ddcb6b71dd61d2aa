package capture

import (
	"net/http"
	"strings"
)

// bodyType is what a request's Content-Type makes of its body.
type bodyType int

const (
	isOther bodyType = iota
	isJSON
	isStream
	// isMistaken are types that clients send JSON with by mistake: curl -d, for one,
	// says that all is a form. Misspelled types of JSON are among them.
	isMistaken
)

// IsJSON reports whether a request declares a JSON body that can be read to its end
// before the request is forwarded.
func IsJSON(header http.Header) bool { return typeOf(header) == isJSON }

// typeOf allocates nothing: every request passes here.
func typeOf(header http.Header) bodyType {
	values := header["Content-Type"]
	if len(values) == 0 {
		return isMistaken
	}
	mediaType, _, _ := strings.Cut(values[0], ";")
	mediaType = strings.TrimSpace(mediaType)
	switch {
	case strings.EqualFold(mediaType, "application/json"):
		return isJSON
	case isStreamType(mediaType):
		return isStream
	case hasSuffixFold(mediaType, "+json"):
		return isJSON
	}
	for _, mistaken := range [...]string{"", "application/x-www-form-urlencoded", "text/plain", "text/json", "text/javascript"} {
		if strings.EqualFold(mediaType, mistaken) {
			return isMistaken
		}
	}
	if containsFold(mediaType, "application/json") || strings.EqualFold(mediaType, "application/x-json") {
		return isMistaken // written twice, quoted, without the semicolon
	}
	return isOther
}

// containsFold reports whether s contains part, whatever the case. It allocates
// nothing.
func containsFold(s, part string) bool {
	for ; len(s) >= len(part); s = s[1:] {
		if strings.EqualFold(s[:len(part)], part) {
			return true
		}
	}
	return false
}

// isStreamType reports whether a type of JSON is a sequence of messages, of which
// the first may be answered before the last is sent: gRPC, gRPC-Web, Connect, and
// what Spring calls a stream. To read one to its end would be to wait for an answer
// that the client waits for.
func isStreamType(mediaType string) bool {
	for _, prefix := range [...]string{"application/grpc", "application/connect+", "application/stream+"} {
		if len(mediaType) >= len(prefix) && strings.EqualFold(mediaType[:len(prefix)], prefix) {
			return hasSuffixFold(mediaType, "+json")
		}
	}
	return false
}

// hasSuffixFold reports whether s is longer than suffix and ends in it.
func hasSuffixFold(s, suffix string) bool {
	return len(s) > len(suffix) && strings.EqualFold(s[len(s)-len(suffix):], suffix)
}
