package capture

import (
	"net/http"
	"strings"
)

// bodyType classifies a request's Content-Type.
type bodyType int

const (
	isOther bodyType = iota
	isJSON
	isStream
	// isMistaken are types that clients often send JSON with by mistake: curl -d
	// declares every body a form. Misspelled JSON types are among them.
	isMistaken
)

// IsJSON reports whether a request declares a JSON body that can be read to its end
// before the request is forwarded.
func IsJSON(header http.Header) bool { return typeOf(header) == isJSON }

// typeOf does not allocate, because every request passes here.
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
		return isMistaken // given twice, quoted, or without the semicolon
	}
	return isOther
}

// containsFold reports whether s contains part, ignoring case. It does not allocate.
func containsFold(s, part string) bool {
	for ; len(s) >= len(part); s = s[1:] {
		if strings.EqualFold(s[:len(part)], part) {
			return true
		}
	}
	return false
}

// isStreamType reports whether a JSON type is a stream of messages, the first of which
// may be answered before the last is sent: gRPC, gRPC-Web, Connect, and Spring's stream
// type. Reading one to its end could block: the client may wait for the answer before
// it sends more.
func isStreamType(mediaType string) bool {
	for _, prefix := range [...]string{"application/grpc", "application/connect+", "application/stream+"} {
		if len(mediaType) >= len(prefix) && strings.EqualFold(mediaType[:len(prefix)], prefix) {
			return hasSuffixFold(mediaType, "+json")
		}
	}
	return false
}

// hasSuffixFold reports whether s is longer than suffix and ends with it, ignoring
// case.
func hasSuffixFold(s, suffix string) bool {
	return len(s) > len(suffix) && strings.EqualFold(s[len(s)-len(suffix):], suffix)
}
