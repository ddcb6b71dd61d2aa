package form

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"
)

// charsets has, by its label in lower case, what the bytes from 0x80 to 0x9F are
// in a charset whose other bytes are Latin-1. Labels are those of the WHATWG
// Encoding standard, which reads ISO-8859-1 as windows-1252 because that is what
// servers send under the name.
var charsets = map[string]*[32]rune{
	"iso-8859-1": &windows1252, "iso8859-1": &windows1252, "iso88591": &windows1252, "iso_8859-1": &windows1252,
	"latin1": &windows1252, "l1": &windows1252, "windows-1252": &windows1252, "cp1252": &windows1252, "x-cp1252": &windows1252,
}

var windows1252 = [32]rune{
	0x20AC, 0x81, 0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8D, 0x017D, 0x8F,
	0x90, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A, 0x0153, 0x9D, 0x017E, 0x0178,
}

// charset returns the charset of a Content-Type in lower case, "" if it has none.
func charset(contentType string) string {
	_, params, _ := strings.Cut(contentType, ";")
	for param := range strings.SplitSeq(params, ";") {
		name, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.Trim(name, httpSpace), "charset") {
			return strings.ToLower(strings.Trim(value, httpSpace+`"`))
		}
	}
	return ""
}

// toUTF8 returns body in UTF-8. Valid UTF-8 is taken for what it is, whatever its
// charset: many servers name another and send UTF-8. It reports false if the
// charset is not known.
func toUTF8(body []byte, charset string) ([]byte, bool) {
	if utf8.Valid(body) {
		return body, true
	}
	upper := charsets[charset]
	if upper == nil {
		return nil, false
	}
	return transcode(body, upper), true
}

func transcode(body []byte, upper *[32]rune) []byte {
	text := make([]byte, 0, len(body)+len(body)/4)
	for _, b := range body {
		switch {
		case b < 0x80:
			text = append(text, b)
		case b < 0xA0:
			text = utf8.AppendRune(text, upper[b-0x80])
		default:
			text = utf8.AppendRune(text, rune(b))
		}
	}
	return text
}

// formToUTF8 returns a form in UTF-8, for the callback's Content-Type names no
// charset and receivers read a form without one as UTF-8. It reports false if the
// charset is not known. A form that names none stays as it is.
func formToUTF8(body []byte, charset string) ([]byte, bool) {
	if charset == "" || utf8.Valid(unescaped(body)) {
		return body, true
	}
	upper := charsets[charset]
	if upper == nil {
		return nil, false
	}
	// Names and values one by one: an escaped & ends no pair.
	pairs := make([]byte, 0, len(body)+len(body)/4)
	for {
		end := bytes.IndexAny(body, "&=")
		if end < 0 {
			return appendEscaped(pairs, transcode(unescaped(body), upper)), true
		}
		pairs = appendEscaped(pairs, transcode(unescaped(body[:end]), upper))
		pairs, body = append(pairs, body[end]), body[end+1:]
	}
}

// unescaped undoes the escapes of a form in b. What is no escape stays as it is.
func unescaped(b []byte) []byte {
	if !bytes.ContainsAny(b, "%+") {
		return b
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '+':
			out = append(out, ' ')
		case b[i] == '%' && i+2 < len(b) && isHex(b[i+1]) && isHex(b[i+2]):
			c, _ := strconv.ParseUint(string(b[i+1:i+3]), 16, 8) // both are hexadecimal digits
			out = append(out, byte(c))
			i += 2
		default:
			out = append(out, b[i])
		}
	}
	return out
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
