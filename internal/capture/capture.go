// Package capture reads the beginning of a request's body, looks for the member that
// makes the request a task, and restores the body byte for byte.
//
// Everything that untrusted clients send is bounded. A body uses 256 KiB of memory and
// then a file. A stalled body is given up after 30 seconds. A compressed body is
// decoded within limits of size, ratio and concurrency.
//
// [Find] looks for the member, [Spool] only reads the body, and [Watch] only detects
// stalled clients. The handlers then read a [Body].
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
	"github.com/caddy-callback/caddy-callback/internal/problem"
)

// Reason says why a request that could have been a task is not. The zero value means
// that it is a task, or never could have been one.
type Reason string

// The reasons, named as in metrics.
const (
	// ContentType: the type is not JSON, but one that clients often send JSON with.
	ContentType Reason = "content_type"
	// Stream: the type is a stream of messages, answered before the body ends.
	Stream Reason = "stream"
	// Coding: the body has an unknown content coding, or several.
	Coding Reason = "content_encoding"
	// Encoded: the body is corrupt, or cannot be decoded within the limits.
	Encoded Reason = "not_decodable"
	// NotJSON: the body contains the name of the member, but is not valid JSON; or its
	// first byte cannot begin JSON.
	NotJSON Reason = "not_json"
	// TooLarge: the member does not appear within the first bytes of the body.
	TooLarge Reason = "max_request"
	// NoSpool: the body could not be stored in a file.
	NoSpool Reason = "no_spool"
	// Hops means that too many callbacks led to the request. The caller finds that out.
	Hops Reason = "hops"
)

// Options configure the search.
type Options struct {
	// Field is the name of the member.
	Field string
	// Limit is how much of a body is read before it is forwarded, in bytes. It is also
	// how much of a compressed body is decoded.
	Limit int64
	// Folder is the folder for files of large bodies. It is created when needed. If it
	// is empty, bodies are kept in memory.
	Folder string
	// Response is used to end reads from a stalled client. If it is nil, reads are not
	// bounded in time.
	Response http.ResponseWriter
}

// Find reads a request's body up to o.Limit and returns the value of its member
// o.Field. The value is "" if the member is missing, null or empty, or the body is not
// valid JSON. reason says why a request that may have named a callback is not a task.
//
// Find replaces the body with a [Body]. The error is a [*problem.Problem].
func Find(r *http.Request, o Options) (value string, reason Reason, _ error) {
	// Not only http.NoBody: some servers wrap every body to count its bytes.
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

// find is [Find] for a body without a content coding.
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
		return "", "", nil // the client has left
	}
	defer leave()
	data, err := b.bytes(min(b.size, o.Limit))
	if err != nil {
		return "", "", noRoom
	}
	return o.valueIn(data, cut)
}

// findEncoded is [Find] for a body with a content coding.
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
		return "", "", nil // the client has left
	}
	defer leave()
	sent := min(b.size, o.Limit)
	data, cut, err := decode(coding, io.LimitReader(b.reader(), sent), o.Limit, b.size > o.Limit)
	if err != nil {
		return "", Encoded, nil // the endpoint may be able to decode it
	}
	return o.valueIn(data, cut)
}

// valueIn returns the value of the member in a decoded body. cut means that data is
// only the beginning of the body.
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
	return "", "", problem.New(http.StatusRequestEntityTooLarge,
		fmt.Sprintf("%s: the body of a request with a callback is limited to %d bytes", o.Field, o.Limit))
}

// refusalOf returns the refusal for a stalled client or a full disk. Other errors are
// left to the handler, which reads the same bytes and gets the same error.
func refusalOf(err error) error {
	if err == ErrStalled {
		return stalled
	}
	return nil
}

var (
	stalled = problem.New(http.StatusRequestTimeout, "the request's body stalled")
	noRoom  = problem.New(http.StatusServiceUnavailable, "callbacks are not available at the moment")
)

// largeBody is the size, in bytes, from which the search of a body waits for a place.
// The search needs the whole body in memory.
const largeBody = maxMemory

// places bound how many large bodies are decoded and parsed at once. One per processor
// is enough.
var places = make(chan struct{}, runtime.GOMAXPROCS(0))

// enter waits for a place for a body of the given size, or for the end of ctx.
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
