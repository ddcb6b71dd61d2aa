// Package capture reads the beginning of a request's body, finds in it the member
// that makes the request a task, and puts the body back byte for byte.
//
// What strangers send is bounded in every way. A body has 256 KiB of memory, and
// beyond that a file; one that stalls is given up after 30 seconds; one that is
// compressed is decoded within limits of size, ratio and concurrency.
//
// [Find] searches, [Spool] only reads, [Watch] only waits, and [Body] is what the
// handlers after them read.
package capture

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

// Reason says why a request that could have been a task is none. The zero value
// is that it is one, or that it never could have been.
type Reason string

// The reasons, as metrics name them.
const (
	// ContentType: the body's type is not JSON, but may be one that a client sends
	// JSON with by mistake.
	ContentType Reason = "content_type"
	// Stream: the type is one whose messages are answered before the body ends.
	Stream Reason = "stream"
	// Coding: the body has a content coding that is not known, or more than one.
	Coding Reason = "content_encoding"
	// Encoded: the body cannot be decoded within the limits, or is corrupt.
	Encoded Reason = "not_decodable"
	// NotJSON: the body has the member's name, but is not valid JSON, or it begins as
	// no JSON does.
	NotJSON Reason = "not_json"
	// TooLarge: the member is not within the first bytes that are read.
	TooLarge Reason = "max_request"
	// NoSpool: the body could not be kept in a file.
	NoSpool Reason = "no_spool"
)

// Refusal is why a request must be refused.
type Refusal struct {
	Status int    // of HTTP
	Detail string // a short phrase for the client
}

func (e *Refusal) Error() string { return e.Detail }

// Options say what to look for and how.
type Options struct {
	// Field is the name of the member.
	Field string
	// Limit is how much of a body is read, in bytes, before it is passed on. It is
	// also how much is decoded of one that is compressed.
	Limit int64
	// Folder is the folder for files of large bodies. It is made when it is needed.
	// If it is empty, they are kept in memory.
	Folder string
	// Response is what ends a read from a client that stalls. If it is nil, reads
	// wait for as long as the body does.
	Response http.ResponseWriter
}

// Find reads a request's body as far as o.Limit and returns the value of its
// member o.Field: "" if there is none, if it is null or empty, or if the body is
// not valid JSON. reason says why a request that may have wanted a callback gets
// none.
//
// The body is put back as a [Body]. The error is a [*Refusal].
func Find(r *http.Request, o Options) (value string, reason Reason, _ error) {
	// Not only http.NoBody: servers wrap the body of every request, to count its bytes.
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return "", "", nil
	}
	switch typ := typeOf(r.Header); {
	case typ == isStream:
		return "", Stream, nil
	case typ == isMistaken:
		return "", ContentType, nil
	case typ != isJSON:
		return "", "", nil
	}
	codings := form.Codings(strings.Join(r.Header["Content-Encoding"], ","))
	if len(codings) > 1 || len(codings) == 1 && !form.Known(codings[0]) {
		return "", Coding, nil
	}
	body := newBody(r, o)
	r.Body = body
	if len(codings) == 1 {
		return body.findEncoded(r.Context(), codings[0], o)
	}
	return body.find(r.Context(), o)
}

// find is [Find] for a body that has no content coding.
func (b *Body) find(ctx context.Context, o Options) (string, Reason, error) {
	defer b.rest.Unbind()
	switch object, reason, err := b.begin(); {
	case err != nil:
		return "", "", refusalOf(err)
	case !object:
		return "", reason, nil
	}
	named, err := b.readTo(o.Limit+1, o.Field)
	switch {
	case err == errSpool && named:
		return "", "", noRoom
	case err == errSpool:
		return "", NoSpool, nil
	case err != nil || b.err != nil && b.err != io.EOF:
		return "", "", refusalOf(err)
	}
	cut := b.size > o.Limit
	switch {
	case !named && cut:
		return "", TooLarge, nil
	case !named:
		return "", "", nil
	}
	leave, err := enter(ctx, b.size)
	if err != nil {
		return "", "", nil // the client is gone
	}
	defer leave()
	data, err := b.bytes(min(b.size, o.Limit))
	if err != nil {
		return "", "", noRoom
	}
	return o.valueIn(data, cut)
}

// findEncoded is [Find] for a body in a content coding.
func (b *Body) findEncoded(ctx context.Context, coding string, o Options) (string, Reason, error) {
	_, err := b.readTo(o.Limit+1, "")
	switch {
	case err == errSpool:
		return "", NoSpool, nil
	case err != nil || b.err != nil && b.err != io.EOF:
		return "", "", refusalOf(err)
	}
	leave, err := enter(ctx, largeBody)
	if err != nil {
		return "", "", nil // the client is gone
	}
	defer leave()
	sent := min(b.size, o.Limit)
	data, cut, err := decode(coding, io.LimitReader(b.reader(), sent), o.Limit, b.size > o.Limit)
	if err != nil {
		return "", Encoded, nil // not JSON to us; the endpoint's to judge
	}
	return o.valueIn(data, cut)
}

// valueIn returns the value of the member in a body, decoded. cut says that data is
// only its beginning.
func (o Options) valueIn(data []byte, cut bool) (string, Reason, error) {
	value, reason, err := member(bytes.TrimPrefix(data, utf8BOM), o.Field, cut)
	switch {
	case err != nil || !cut || reason != "":
		return value, reason, err
	case value == "" && mayName(data, o.Field):
		return "", "", nil
	case value == "":
		return "", TooLarge, nil
	}
	return "", "", &Refusal{http.StatusRequestEntityTooLarge,
		fmt.Sprintf("%s: a request with a callback can have %d bytes at most", o.Field, o.Limit)}
}

// refusalOf returns the refusal for a client that stalls. What else breaks while we
// read would have broken in the handler's hands: it gets the same bytes and the
// same error.
func refusalOf(err error) error {
	if err == ErrStalled {
		return stalled
	}
	return nil
}

var (
	stalled = &Refusal{http.StatusRequestTimeout, "the request's body stalled"}
	noRoom  = &Refusal{http.StatusServiceUnavailable, "callbacks are not available at the moment"}
)

// largeBody is the size in bytes from which the search of a body waits for a place:
// it is in memory whole meanwhile.
const largeBody = maxMemory

// places bound how many large bodies are decoded and parsed at once. More would not
// be faster.
var places = make(chan struct{}, runtime.GOMAXPROCS(0))

// enter waits for a place for a body of the given size, until ctx ends.
func enter(ctx context.Context, size int64) (leave func(), _ error) {
	if size < largeBody {
		return func() {}, nil
	}
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
