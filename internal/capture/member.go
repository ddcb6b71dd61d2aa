package capture

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/tidwall/gjson"

	"github.com/caddy-callback/caddy-callback/internal/problem"
)

// utf8BOM is the byte order mark. JSON does not have one, but parsers may ignore it
// (RFC 8259, section 8.1), and clients on Windows send it.
var utf8BOM = []byte("\uFEFF")

// member returns the value of a member of a JSON object. cut means that data is only
// the beginning of the object.
func member(data []byte, field string, cut bool) (string, Reason, error) {
	if !mayName(data, field) {
		return "", "", nil
	}
	var found [2]gjson.Result
	n := 0
	// gjson takes strings. A copy would double the memory of a body, so the string
	// shares the bytes: nothing writes to them, and no substring is kept.
	gjson.Parse(unsafe.String(unsafe.SliceData(data), len(data))).ForEach(func(key, value gjson.Result) bool {
		if key.Type == gjson.String && key.Str == field {
			found[n] = value
			n++
		}
		return n < len(found)
	})
	// gjson.Valid recurses: a body of brackets would overflow the stack and end the
	// process.
	if !cut && !json.Valid(data) {
		return "", NotJSON, nil // the endpoint decides what to do with it
	}
	switch {
	case n == 0:
		return "", "", nil
	case n > 1:
		return "", "", badMember(field, "the member is there twice, and parsers disagree on which one counts")
	}
	switch value := found[0]; value.Type {
	case gjson.Null:
		return "", "", nil
	case gjson.String:
		value, err := stringOf(value.Raw, field)
		return value, "", err
	default:
		return "", "", badMember(field, "not a string")
	}
}

func badMember(field, detail string) error {
	return problem.New(http.StatusBadRequest, field+": "+detail)
}

// stringOf returns the value of a JSON string. It copies the value, so that the body
// can be freed while the task runs.
func stringOf(raw, field string) (string, error) {
	if !utf8.ValidString(raw) {
		return "", badMember(field, "has a control or invalid character")
	}
	special := func(c rune) bool { return c < ' ' || c == '\\' }
	if len(raw) > 1 && strings.HasSuffix(raw, `"`) && !strings.ContainsFunc(raw, special) {
		return strings.Clone(raw[1 : len(raw)-1]), nil // most values
	}
	var value string
	// Not gjson: it drops the character after half of a surrogate pair.
	if err := json.Unmarshal([]byte(raw), &value); err != nil {
		return "", nil // not valid JSON
	}
	return value, nil
}

// mayName reports whether data may have a member of that name. A search for the bytes
// is many times faster than parsing. A name can also be written with escapes.
func mayName(data []byte, field string) bool {
	return !isPlain(field) || contains(data, field) || spells(data, field)
}

// isPlain reports whether JSON can write a name only as its own bytes or with \u
// escapes.
func isPlain(name string) bool {
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"/\`, c) >= 0 {
			return false
		}
	}
	return name != ""
}

// contains is [bytes.Contains] for a name in a text. bytes.Contains looks for the first
// byte of the name, and a letter occurs in every line.
func contains(data []byte, name string) bool {
	rare := max(strings.IndexAny(name, "_-."), 0)
	misses := 0
	for at := rare; at < len(data) && misses <= at/16+16; misses++ {
		i := bytes.IndexByte(data[at:], name[rare])
		if i < 0 {
			return false
		}
		at += i + 1
		if from := data[at-1-rare:]; len(from) >= len(name) && string(from[:len(name)]) == name {
			return true
		}
	}
	return bytes.Contains(data, []byte(name)) // the byte is not rare enough here
}

// escape begins the escape of an ASCII character in a JSON string. Two hexadecimal
// digits follow.
const escape = `\u00`

// spells reports whether data contains the escape of a character of an ASCII name.
func spells(data []byte, name string) bool {
	for {
		i := bytes.Index(data, []byte(escape))
		if i < 0 || len(data) < i+len(escape)+2 {
			return false
		}
		data = data[i+len(escape):]
		code, err := strconv.ParseUint(string(data[:2]), 16, 8)
		if err == nil && strings.IndexByte(name, byte(code)) >= 0 {
			return true
		}
	}
}
