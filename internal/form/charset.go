package form

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"
)

// charsets maps the label of a charset, in lower case, to the characters of its
// bytes 0x80 to 0x9F. The other bytes are those of Latin-1. The labels are those of
// the WHATWG Encoding standard, which reads ISO-8859-1 as windows-1252: that is what
// servers send under this name.
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

// toUTF8 converts body to UTF-8. Valid UTF-8 is returned unchanged, whatever the
// charset: many servers send UTF-8 and name another one. It reports false if the
// charset is unknown.
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

// formToUTF8 converts a form to UTF-8. The callback's Content-Type names no charset,
// and receivers read such a form as UTF-8. A form without a charset is returned
// unchanged. formToUTF8 reports false if the charset is unknown.
func formToUTF8(body []byte, charset string) ([]byte, bool) {
	if charset == "" || utf8.Valid(unescaped(body)) {
		return body, true
	}
	upper := charsets[charset]
	if upper == nil {
		return nil, false
	}
	// Each name and value is converted alone: an escaped & does not end a pair.
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

// unescaped decodes the percent escapes and plus signs of a form. Invalid escapes are
// kept.
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
