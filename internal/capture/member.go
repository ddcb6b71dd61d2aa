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
)

// utf8BOM is no part of JSON (RFC 8259, section 8.1), but parsers may ignore it,
// and clients on Windows send it.
var utf8BOM = []byte("\uFEFF")

// member returns the value of a JSON object's member. cut says that data is
// only the beginning of the object.
func member(data []byte, field string, cut bool) (string, Reason, error) {
	if !mayName(data, field) {
		return "", "", nil
	}
	var found []gjson.Result
	// gjson takes strings and returns parts of them, and a copy would double the
	// memory of a body. Nobody writes to it, and no part outlives it.
	gjson.Parse(unsafe.String(unsafe.SliceData(data), len(data))).ForEach(func(key, value gjson.Result) bool {
		if key.Type == gjson.String && key.Str == field {
			found = append(found, value)
		}
		return len(found) < 2
	})
	// Not gjson.Valid: it is recursive, and a body of brackets alone would
	// exhaust the stack and end the process.
	if !cut && !json.Valid(data) {
		return "", NotJSON, nil // the endpoint's to judge
	}
	switch {
	case len(found) == 0:
		return "", "", nil
	case len(found) > 1:
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
	return &Refusal{http.StatusBadRequest, field + ": " + detail}
}

// stringOf returns the value of a JSON string. It does not share memory with
// it, or the whole body would be kept for as long as the task runs.
func stringOf(raw, field string) (value string, _ error) {
	if !utf8.ValidString(raw) {
		return "", badMember(field, "has a control or invalid character")
	}
	// Not by gjson: after half of a surrogate pair it drops a character.
	if err := json.Unmarshal([]byte(raw), &value); err != nil {
		return "", nil // the beginning of something that is no JSON
	}
	return value, nil
}

// mayName says whether data could have a member of that name. Searching for the
// bytes is many times faster than parsing; a name may also be spelled with
// escapes.
func mayName(data []byte, field string) bool {
	return !isPlain(field) || contains(data, field) || spells(data, field)
}

// isPlain reports whether a name is written in JSON as it is, but for escapes by
// code.
func isPlain(name string) bool {
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"/\`, c) >= 0 {
			return false
		}
	}
	return name != ""
}

// contains is [bytes.Contains] for a name in a text. That one looks for the first
// byte of what it searches; for a letter it finds one on each line.
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
	return bytes.Contains(data, []byte(name)) // the byte is not so rare here
}

// escape begins the spelling of an ASCII character in a JSON string by its code,
// two digits.
const escape = `\u00`

// spells says whether a character of an ASCII name is spelled by its code in data.
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
