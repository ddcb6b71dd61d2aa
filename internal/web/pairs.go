package web

import (
	"bytes"
	"encoding/json"
	"mime"
	"net/url"
	"strings"
)

// maxPairs bounds the pairs of one callback. A body of "&a&a&a…" would otherwise make
// tens of thousands of rows in the browser.
const maxPairs = 1000

// decodePairs returns the pairs of a body, never nil, and whether there are more.
func decodePairs(contentType, body string, truncated bool) (pairs []pair, more bool) {
	mediaType, _, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil:
	case mediaType == "application/x-www-form-urlencoded":
		return formPairs(body, truncated)
	case mediaType == "application/json" || strings.HasSuffix(mediaType, "+json"):
		if !truncated { // JSON that was cut is not valid
			return memberPairs(body)
		}
	}
	return []pair{}, false
}

// formPairs decodes a form in order. url.ParseQuery would lose the order and stop at
// the first error. Malformed parts are returned as they were sent.
func formPairs(body string, truncated bool) (pairs []pair, more bool) {
	pairs = []pair{}
	if i := strings.LastIndexByte(body, '%'); truncated && i >= 0 && i > len(body)-len("%XX") {
		body = body[:i] // an escape that was cut
	}
	for field := range strings.SplitSeq(body, "&") {
		if field == "" {
			continue
		}
		if len(pairs) == maxPairs {
			return pairs, true
		}
		name, value, _ := strings.Cut(field, "=")
		pairs = append(pairs, pair{unescape(name), unescape(value)})
	}
	return pairs, truncated
}

func unescape(s string) string {
	if decoded, err := url.QueryUnescape(s); err == nil {
		return decoded
	}
	return s
}

// memberPairs lists the members of a JSON object. Strings are decoded; other values are
// compact JSON, with numbers as they are written.
func memberPairs(body string) (pairs []pair, more bool) {
	pairs = []pair{}
	if !json.Valid([]byte(body)) {
		return pairs, false
	}
	decoder := json.NewDecoder(strings.NewReader(body))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return pairs, false
	}
	for decoder.More() {
		if len(pairs) == maxPairs {
			return pairs, true
		}
		var value json.RawMessage
		token, err := decoder.Token()
		name, isName := token.(string)
		if err != nil || !isName || decoder.Decode(&value) != nil {
			return pairs, false // cannot happen: the JSON is valid
		}
		pairs = append(pairs, pair{name, memberValue(value)})
	}
	return pairs, false
}

func memberValue(value json.RawMessage) string {
	var text string
	if value[0] == '"' && json.Unmarshal(value, &text) == nil {
		return text
	}
	var compact bytes.Buffer
	if json.Compact(&compact, value) != nil {
		return string(value) // cannot happen: the JSON is valid
	}
	return compact.String()
}
