package form

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"
	"unsafe"

	"github.com/tidwall/gjson"
)

// jsonSpace is the whitespace of JSON (RFC 8259, section 2).
const jsonSpace = " \t\n\r"

// Head has the fields of a callback in format json beside the data.
type Head struct {
	TaskID string
	Status string
	// UpstreamStatus is the status code of the response. Zero: there was none.
	UpstreamStatus int
	// Error is one sentence on why there is no result. Empty: there is no error.
	Error string
}

// document is the body of a callback in format json.
type document struct {
	TaskID         string `json:"task_id"`
	Status         string `json:"status"`
	UpstreamStatus *int   `json:"upstream_status"`
	Data           any    `json:"data"`
	ResultURL      string `json:"result_url,omitempty"`
	Error          string `json:"error,omitempty"`
}

// EncodeJSON writes a response, or the lack of one if r is nil, as
//
//	{"task_id":"…","status":"COMPLETE","upstream_status":200,"data":…}
//
// These four members are always there; upstream_status is null if there was
// none. The data is
//
//   - the JSON itself, compact, if the response is JSON,
//   - a string with the text if it is other UTF-8, a form or empty,
//   - a string in base64, with Encoding "base64", if it is bytes,
//   - a string with its first bytes, with Truncated, if it is larger than limit,
//   - null if there is no response, or if it has a Link, which is in a member
//     "result_url" then.
//
// A member "error" follows if the head has an error.
func EncodeJSON(h Head, r *Response, limit int64) Callback {
	cb := Callback{ContentType: jsonType}
	doc := document{TaskID: h.TaskID, Status: h.Status, Error: h.Error}
	if h.UpstreamStatus != 0 {
		doc.UpstreamStatus = &h.UpstreamStatus
	}
	doc.Data = cb.dataOf(r, limit)
	doc.ResultURL = r.link()
	cb.Body = encodeDocument(doc)
	return cb
}

// EncodeData writes a response, or the lack of one if r is nil, as {"data":…}
// and nothing beside it. The data is that of [EncodeJSON]. A member "error" with
// the message follows if there is a message.
func EncodeData(message string, r *Response, limit int64) Callback {
	cb := Callback{ContentType: jsonType}
	cb.Body = encodeDocument(struct {
		Data      any    `json:"data"`
		ResultURL string `json:"result_url,omitempty"`
		Error     string `json:"error,omitempty"`
	}{cb.dataOf(r, limit), r.link(), message})
	return cb
}

// link returns the link to the body, "" if there is none.
func (r *Response) link() string {
	if r == nil {
		return ""
	}
	return r.Link
}

// dataOf returns the member data, and notes in the callback how it is written.
func (cb *Callback) dataOf(r *Response, limit int64) any {
	if r == nil || r.Link != "" {
		return nil
	}
	res := read(*r, limit)
	cb.Truncated = res.truncated
	switch {
	case res.kind == jsonValue:
		return json.RawMessage(res.body)
	case res.kind == binary, !utf8.Valid(res.body): // a form need not be UTF-8
		cb.Encoding = encodingBase64
		return base64.StdEncoding.EncodeToString(res.body)
	default:
		return string(res.body)
	}
}

func encodeDocument(doc any) []byte {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // it would rewrite the strings of the app's own JSON
	// Encoding cannot fail: read has validated the only raw JSON.
	_ = enc.Encode(doc)
	return bytes.TrimSuffix(body.Bytes(), []byte("\n"))
}

// jsonPairs returns the pairs of a valid JSON value: one for each member of an
// object, else one named response.
func jsonPairs(value []byte) []byte {
	pairs := make([]byte, 0, len(responsePair)+len(value))
	// gjson takes strings. A copy would double the memory of a result, so the string
	// shares the bytes: nothing writes to them, and no substring is kept.
	v := gjson.Parse(unsafe.String(unsafe.SliceData(value), len(value)))
	if !v.IsObject() {
		return appendValue(append(pairs, responsePair...), v, "null")
	}
	v.ForEach(func(name, member gjson.Result) bool {
		if len(pairs) > 0 {
			pairs = append(pairs, '&')
		}
		pairs = appendEscaped(pairs, name.Str)
		pairs = append(pairs, '=')
		pairs = appendValue(pairs, member, "")
		return true
	})
	return pairs
}

// appendValue appends a JSON value as the value of a pair, null as given. Numbers are appended
// as written: as a float, 12345678901234567890 would lose its last digits.
func appendValue(dst []byte, v gjson.Result, null string) []byte {
	switch v.Type {
	case gjson.String:
		// gjson has unescaped it; lone surrogates have become U+FFFD.
		return appendEscaped(dst, v.Str)
	case gjson.Null:
		return append(dst, null...)
	case gjson.JSON:
		return appendCompact(dst, v.Raw)
	default:
		return appendEscaped(dst, v.Raw)
	}
}

// appendCompact appends valid JSON without whitespace between tokens, escaped as a
// form's value. json.Compact would need a buffer of its own.
func appendCompact(dst []byte, value string) []byte {
	start, quoted := 0, false
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\':
			i++ // only in strings; an escaped quote does not end one
		case !quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			dst = appendEscaped(dst, value[start:i])
			start = i + 1
		}
	}
	return appendEscaped(dst, value[start:])
}
