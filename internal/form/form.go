// Package form turns the response of an endpoint into the body of a callback.
//
// A callback is a form by default, as a browser would post it, so that any
// receiver can read it without a library:
//
//	{"response":"example response"}   becomes   response=example+response
//
// [Encode] writes that, [EncodeError] its counterpart for a task that has no
// response. [EncodeJSON], [EncodeData], [EncodeCloudEvent] and [EncodeRaw] write the
// other formats. A response passes through the package in this order: [NewReader]
// decodes its content codings (reader.go), decode.go determines its kind, and one of
// the functions above writes it.
//
// Encoding never fails: a body that cannot be decoded or understood is posted as
// bytes, in base64. Memory use is proportional to the captured response and to the
// limit, not to the size that the response would expand to.
//
// All functions may be called from several goroutines at once.
package form

import "strings"

const (
	formType = "application/x-www-form-urlencoded"
	jsonType = "application/json"
)

// Response is what an endpoint answered, as it was captured. It is not
// modified. The zero value is an empty response.
type Response struct {
	// ContentType is the header of that name, as sent.
	ContentType string
	// ContentEncoding is the header of that name, as sent: "gzip", "gzip, br".
	// Several headers of that name are joined by commas.
	ContentEncoding string
	// Body is the body as sent, only its beginning if Size is larger.
	Body []byte
	// Size is the length of the whole body in bytes, as sent. Zero, as anything
	// below len(Body), means len(Body).
	Size int64
	// Link is the URL of the body if that is too large to be posted. Body is not read
	// then.
	Link string
}

// Callback is the body of a callback with its content type. Its Body may share memory
// with the Response it was made from.
type Callback struct {
	// ContentType is empty only in format raw, if the endpoint sent none.
	ContentType string
	// ContentEncoding is set only in format raw: as the endpoint sent it.
	ContentEncoding string
	// Body is the body to post.
	Body []byte
	// Encoding is the value of the header callback-encoding: "base64" if the
	// body has the result in base64, "" if it has it unchanged.
	Encoding string
	// Truncated is the value of the header callback-truncated: the full size of
	// the result in bytes if only its beginning is posted, 0 if it is whole. It is
	// the decoded size where that is known; counting ends at 64 MiB, or at the limit if that is more.
	Truncated int64
	// Link is the value of the header callback-result-url. It is set only in format raw,
	// whose body has no place for it.
	Link string
}

// Encode writes a response as a form. Most callers want this one.
//
//   - A JSON object becomes a pair for each of its members, in its order,
//     repeats kept: strings as they are, numbers and booleans as written, null
//     as nothing, objects and arrays as compact JSON. {} becomes no pair at all.
//   - Other JSON becomes response= that JSON, a string without its quotes.
//   - A form stays as it is; one in ISO-8859-1 or windows-1252 that says so becomes
//     UTF-8, and one in another charset is bytes.
//   - Other text in these charsets becomes response= the text in UTF-8; so does an
//     empty body.
//   - Bytes become response= base64, with Encoding "base64".
//   - A body of more than limit bytes, decoded, and one that was not captured
//     whole, becomes response= its first bytes, at most limit of them, with
//     Truncated. It is text up to its last whole character, else base64: JSON or
//     a form that is cut off is neither any more.
//   - A body with a Link becomes result_url= that link.
//
// With a limit below 1, a body that is not empty is posted without data.
func Encode(r Response, limit int64) Callback {
	if r.Link != "" {
		return Callback{ContentType: formType, Body: appendEscaped([]byte(resultURLPair), r.Link)}
	}
	res := read(r, limit)
	cb := Callback{ContentType: formType, Truncated: res.truncated}
	switch res.kind {
	case form:
		cb.Body = res.body
	case jsonValue:
		cb.Body = jsonPairs(res.body)
	case text:
		cb.Body = appendEscaped([]byte(responsePair), res.body)
	case binary:
		cb.Body = appendEscapedBase64([]byte(responsePair), res.body)
		cb.Encoding = encodingBase64
	}
	return cb
}

// EncodeError writes the form of a task that has no response: error= the
// message, one sentence. It serves format raw too, which has nothing to post as
// it was sent.
func EncodeError(message string) Callback {
	message = strings.ToValidUTF8(message, "\uFFFD")
	return Callback{ContentType: formType, Body: appendEscaped([]byte(errorPair), message)}
}

// EncodeRaw posts a response as the endpoint sent it, still in its content
// codings. Only its first limit bytes are posted if it is longer, with
// Truncated the size as sent. If it has a Link, no body is posted.
func EncodeRaw(r Response, limit int64) Callback {
	if r.Link != "" {
		return Callback{Link: r.Link}
	}
	body := head(r.Body, limit)
	return Callback{
		ContentType:     r.ContentType,
		ContentEncoding: r.ContentEncoding,
		Body:            body,
		Truncated:       missing(r, body),
	}
}
