package form

import (
	"encoding/base64"
	"slices"
)

const (
	// responsePair begins the pair of a result that is not a JSON object.
	responsePair = "response="
	// resultURLPair begins the pair of a link to a result.
	resultURLPair = "result_url="
	// errorPair begins the pair of a task without a result.
	errorPair = "error="
	// encodingBase64 is the value of callback-encoding for base64.
	encodingBase64 = "base64"
)

// bare are the bytes that application/x-www-form-urlencoded does not escape: those
// outside of the percent-encode set of this name in the WHATWG URL standard.
// url.QueryEscape differs in "*" and "~".
var bare = func() (set [256]bool) {
	for _, c := range []byte("*-._0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") {
		set[c] = true
	}
	return set
}()

// appendEscaped appends s as browsers write a name or a value of a form.
func appendEscaped[T string | []byte](dst []byte, s T) []byte {
	const upperHex = "0123456789ABCDEF"
	size := len(s)
	for i := range len(s) {
		if c := s[i]; !bare[c] && c != ' ' {
			size += len("%XX") - 1
		}
	}
	dst = slices.Grow(dst, size)
	if size == len(s) { // perhaps nothing to escape but spaces
		start := len(dst)
		dst = append(dst, s...)
		for i, c := range dst[start:] {
			if c == ' ' {
				dst[start+i] = '+'
			}
		}
		return dst
	}
	for i := range len(s) {
		switch c := s[i]; {
		case bare[c]:
			dst = append(dst, c)
		case c == ' ':
			dst = append(dst, '+')
		default:
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return dst
}

// appendEscapedBase64 appends b in base64, with "+", "/" and "=" escaped. It encodes
// in pieces, so that the base64 text is not in memory a second time.
func appendEscapedBase64(dst, b []byte) []byte {
	var piece [4096]byte // a multiple of 4: no padding but at the end
	size := base64.StdEncoding.EncodedLen(len(b))
	dst = slices.Grow(dst, size+size/8) // of 64 characters, 2 become three bytes
	for len(b) > 0 {
		n := min(len(b), base64.StdEncoding.DecodedLen(len(piece)))
		base64.StdEncoding.Encode(piece[:], b[:n])
		dst = appendEscaped(dst, piece[:base64.StdEncoding.EncodedLen(n)])
		b = b[n:]
	}
	return dst
}
