package form

import (
	"encoding/base64"
	"encoding/json"
	"mime"
	"strings"
	"time"
	"unicode/utf8"
)

// cloudEventType is the media type of one event in structured mode.
const cloudEventType = "application/cloudevents+json; charset=utf-8"

// Event has the attributes of a callback in format cloudevents.
type Event struct {
	// ID and Source identify the event together. Source is a URI reference and not
	// empty.
	ID, Source string
	// Type is what happened.
	Type string
	// Subject is the subject of the event, such as the task.
	Subject string
	// Time is when it happened.
	Time time.Time
	// UpstreamStatus is the status code of the response. Zero: there was none.
	UpstreamStatus int
	// Error is one sentence on why there is no result. Empty: there is no error.
	Error string
}

// eventDocument is a CloudEvent 1.0 in the JSON event format. The names of extension
// attributes are lower-case letters and digits, as the specification demands.
type eventDocument struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject,omitempty"`
	Time            string          `json:"time,omitempty"`
	UpstreamStatus  int             `json:"upstreamstatus,omitempty"`
	Error           string          `json:"error,omitempty"`
	DataContentType string          `json:"datacontenttype,omitempty"`
	DataRef         string          `json:"dataref,omitempty"`
	Data            json.RawMessage `json:"data,omitempty"`
	DataBase64      *string         `json:"data_base64,omitempty"`
}

// EncodeCloudEvent writes a response, or the lack of one if r is nil, as a CloudEvent
// 1.0 in structured JSON. The data is
//
//   - the JSON itself, compact, if the response is JSON,
//   - a string with the text if it is other text, a form or empty,
//   - data_base64 if it is bytes,
//   - a string with its first bytes, with Truncated, if it is larger than limit,
//   - missing if there is no response, or if it has a Link, which is in the extension
//     attribute dataref then.
//
// datacontenttype says what the data is, after its content codings and its charset
// were undone: JSON that is cut off is text. The status of the response and the
// error are the extension attributes upstreamstatus and error.
func EncodeCloudEvent(e Event, r *Response, limit int64) Callback {
	cb := Callback{ContentType: cloudEventType}
	doc := eventDocument{
		SpecVersion: "1.0", ID: e.ID, Source: e.Source, Type: e.Type, Subject: e.Subject,
		UpstreamStatus: e.UpstreamStatus, Error: e.Error,
	}
	if !e.Time.IsZero() {
		doc.Time = e.Time.UTC().Format(time.RFC3339Nano)
	}
	switch {
	case r == nil:
	case r.Link != "":
		doc.DataContentType, doc.DataRef = typeOrBytes(r.ContentType), r.Link
	default:
		res := read(*r, limit)
		cb.Truncated = res.truncated
		doc.setData(res, r.ContentType)
	}
	cb.Body = encodeDocument(doc)
	return cb
}

// setData sets the data and its type.
func (d *eventDocument) setData(res result, contentType string) {
	switch {
	case res.kind == jsonValue:
		d.DataContentType, d.Data = jsonType, res.body
	case res.kind == binary, !utf8.Valid(res.body): // a form need not be UTF-8
		encoded := base64.StdEncoding.EncodeToString(res.body)
		d.DataContentType, d.DataBase64 = typeOrBytes(contentType), &encoded
	default:
		d.DataContentType, d.Data = textType(res, contentType), encodeDocument(string(res.body))
	}
}

// typeOrBytes returns the content type, or that of any bytes if it is not valid.
func typeOrBytes(contentType string) string {
	if typ, _, err := mime.ParseMediaType(contentType); err != nil || !strings.Contains(typ, "/") {
		return "application/octet-stream"
	}
	return contentType
}

// textType returns the media type of a string. A string with a JSON type would be
// read as JSON that is a string.
func textType(res result, contentType string) string {
	if res.kind == form {
		return formType
	}
	typ, params, err := mime.ParseMediaType(contentType)
	if err != nil || !strings.Contains(typ, "/") || isJSON(typ) || res.truncated > 0 && isForm(typ) {
		return "text/plain; charset=utf-8"
	}
	params["charset"] = "utf-8"
	if typ = mime.FormatMediaType(typ, params); typ == "" {
		return "text/plain; charset=utf-8"
	}
	return typ
}
