package form

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// maxDecoded is where decoding stops, in bytes of output. Bytes beyond the limit of
// a result are decoded only to count them. 1 MB of gzip can hold 1 GB of zeros:
// without a bound, each attempt would keep a core busy for as long as the author of
// the response likes.
const maxDecoded = 64 << 20

// utf8BOM is the byte order mark. JSON does not have one, but parsers may ignore it
// (RFC 8259, section 8.1), and servers on Windows send it.
const utf8BOM = "\uFEFF"

// kind is the kind of data in a result.
type kind int

const (
	text      kind = iota // UTF-8
	binary                // anything
	form                  // pairs already
	jsonValue             // valid JSON in valid UTF-8, nested no deeper than 10,000
)

// result is a response after decoding, with its kind.
type result struct {
	kind      kind
	body      []byte // at most limit bytes; of jsonValue the value alone
	truncated int64  // the full size in bytes if body is only its beginning
}

// read decodes the content codings of a response, up to limit bytes, and determines
// its kind.
//
// A response is JSON if its content type says so (application/json, *+json) and its
// body is valid JSON. Without a content type, or with text/plain, an object or an
// array is JSON too: many small servers set no type, and net/http then sends
// text/plain.
func read(r Response, limit int64) result {
	body, truncated, err := decode(r, limit)
	if err != nil {
		// The coding is unknown or the data is corrupt. The receiver gets the bytes
		// that the endpoint sent, and may be able to read them.
		body = head(r.Body, limit)
		return result{kind: binary, body: body, truncated: missing(r, body)}
	}
	charset := charset(r.ContentType)
	if truncated > 0 {
		beginning := wholeRunes(body)
		if utf8.Valid(beginning) {
			return result{kind: text, body: beginning, truncated: truncated}
		}
		if utf, ok := toUTF8(body, charset); ok { // it may have grown
			return result{kind: text, body: wholeRunes(head(utf, limit)), truncated: truncated}
		}
		return result{kind: binary, body: body, truncated: truncated}
	}

	typ := mediaType(r.ContentType)
	if isForm(typ) && len(body) > 0 {
		if pairs, ok := formToUTF8(body, charset); ok {
			return result{kind: form, body: pairs}
		}
		return result{kind: binary, body: body}
	}
	// encoding/json accepts strings that are not UTF-8, and replaces the invalid
	// bytes. Base64 keeps them.
	utf, ok := toUTF8(body, charset)
	if !ok {
		return result{kind: binary, body: body}
	}
	body = utf
	named := isJSON(typ)
	if named || typ == "" || strings.EqualFold(typ, "text/plain") {
		value := bytes.Trim(bytes.TrimPrefix(body, []byte(utf8BOM)), jsonSpace)
		nested := len(value) > 0 && (value[0] == '{' || value[0] == '[')
		// gjson.Valid recurses: 8 MB of "[" overflow the stack and end the process.
		// json.Valid stops at 10,000 levels.
		if (nested || named) && json.Valid(value) {
			return result{kind: jsonValue, body: value}
		}
	}
	return result{kind: text, body: body}
}

// decode decodes the content codings of a response. It returns the first limit bytes
// of the body and, if there are more, the full size. If only a part of the response
// was captured, or it is larger than maxDecoded, the full size is a lower bound.
func decode(r Response, limit int64) (body []byte, truncated int64, err error) {
	if len(r.Body) == 0 || len(Codings(r.ContentEncoding)) == 0 {
		body = head(r.Body, limit)
		return body, missing(r, body), nil
	}
	d, err := NewReader(r.ContentEncoding, bytes.NewReader(r.Body))
	if err != nil {
		return nil, 0, err
	}
	defer d.Close()

	limit = max(limit, 0)
	body, err = io.ReadAll(io.LimitReader(d, limit))
	size := int64(len(body))
	if err == nil {
		var rest int64
		rest, err = io.Copy(io.Discard, io.LimitReader(d, max(0, maxDecoded-size)))
		size += rest
	}
	if r.Size > int64(len(r.Body)) {
		// Only a part was captured, so decoding ends early.
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = nil
		}
		return body, max(size, r.Size), err
	}
	if size > int64(len(body)) {
		truncated = size
	}
	return body, truncated, err
}

// head returns the first limit bytes of body.
func head(body []byte, limit int64) []byte {
	if int64(len(body)) <= limit {
		return body
	}
	return body[:max(limit, 0)]
}

// missing returns the size of a response as it was sent if body is only its
// beginning, and 0 if body is all of it.
func missing(r Response, body []byte) int64 {
	if size := max(r.Size, int64(len(r.Body))); size > int64(len(body)) {
		return size
	}
	return 0
}

// wholeRunes returns body without an incomplete character at its end.
func wholeRunes(body []byte) []byte {
	for i := len(body) - 1; i >= 0 && i > len(body)-utf8.UTFMax; i-- {
		if utf8.RuneStart(body[i]) {
			if !utf8.FullRune(body[i:]) {
				return body[:i]
			}
			break
		}
	}
	return body
}

// mediaType returns the type and subtype of a Content-Type. mime.ParseMediaType
// allocates a map, and refuses a type because of invalid parameters.
func mediaType(contentType string) string {
	typ, _, _ := strings.Cut(contentType, ";")
	return strings.Trim(typ, httpSpace)
}

func isForm(mediaType string) bool {
	return strings.EqualFold(mediaType, formType)
}

func isJSON(mediaType string) bool {
	const suffix = "+json" // RFC 6839, section 3.1
	n := len(mediaType) - len(suffix)
	return strings.EqualFold(mediaType, jsonType) || n > 0 && strings.EqualFold(mediaType[n:], suffix)
}
