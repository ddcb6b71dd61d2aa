package web

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// The gateway's default headers. The headers with the task's ID and status are
// configurable.
const (
	headerAttempt        = "callback-attempt"
	headerUpstreamStatus = "callback-upstream-status"
)

// Other headers with the ID or status: those of callbacks in the profiles beam2 and
// openfaas, and those of other senders of Standard Webhooks.
var (
	otherTaskHeaders   = []string{webhook.HeaderID, "X-Task-ID", "X-Call-Id"}
	otherStatusHeaders = []string{"X-Task-Status"}
)

// The outcomes of verifying a signature.
const (
	signatureVerified  = "verified"
	signatureFailed    = "failed"
	signatureUnsigned  = "unsigned"
	signatureUnchecked = "unchecked"
)

// callback is a recorded request. Its tags are the inbox's JSON.
type callback struct {
	// Number counts the callbacks of this inbox, from 1.
	Number uint64 `json:"number"`
	// ReceivedAt is when the whole request had been received.
	ReceivedAt time.Time `json:"received_at"`
	Method     string    `json:"method"`
	// Path is decoded; Query is as sent.
	Path  string `json:"path"`
	Query string `json:"query"`
	Proto string `json:"proto"`
	// RemoteAddr is the address and port of the sender, or of the nearest proxy.
	RemoteAddr string `json:"remote_addr"`

	// TaskID is the header beam-task-id, or else one of otherTaskHeaders. It is empty
	// if there is none.
	TaskID string `json:"task_id"`
	// Status is the header x-beam-task-status, or else one of otherStatusHeaders. It is
	// empty if there is none.
	Status string `json:"status"`
	// Attempt and UpstreamStatus are missing if the sender does not send them.
	Attempt        int `json:"attempt,omitempty"`
	UpstreamStatus int `json:"upstream_status,omitempty"`
	// SincePreviousMS is the time since the previous callback of the same task, in
	// milliseconds. It is missing if no previous callback is remembered.
	SincePreviousMS *int64 `json:"since_previous_ms,omitempty"`

	// Signature is verified, failed, unsigned or unchecked. SignatureError says why it
	// failed or could not be checked.
	Signature      string `json:"signature"`
	SignatureError string `json:"signature_error,omitempty"`

	// Headers are sorted by name, in lower case. Repeated headers keep their order.
	Headers []pair `json:"headers"`

	// BodySize is how many bytes of the body were received, BodyKept how many are kept.
	// BodyError says why the body is incomplete.
	BodySize  int64  `json:"body_size"`
	BodyKept  int    `json:"body_kept"`
	BodyError string `json:"body_error,omitempty"`

	body []byte
}

// pair is a header, or a name and value of a body. In jq, from_entries turns a list of
// pairs into an object.
type pair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// shownCallback is a callback with the part of its body that JSON shows.
type shownCallback struct {
	*callback

	// Pairs are the fields of a form or the members of a JSON object, in order and with
	// duplicates. The list is empty if the body is neither, or is JSON that was cut.
	Pairs []pair `json:"pairs"`
	// PairsTruncated is set if there are more pairs, or the last one is cut.
	PairsTruncated bool `json:"pairs_truncated,omitempty"`

	// Body is the body if it is UTF-8; otherwise BodyBase64 is.
	Body       string `json:"body"`
	BodyBase64 []byte `json:"body_base64,omitempty"`
	// BodyTruncated is set if the body that is shown is not complete.
	BodyTruncated bool `json:"body_truncated,omitempty"`
}

// newCallback describes a request. The memory sets the remaining fields.
func (in *Inbox) newCallback(r *http.Request, body received) *callback {
	c := &callback{
		Method:         r.Method,
		Path:           r.URL.Path,
		Query:          r.URL.RawQuery,
		Proto:          r.Proto,
		RemoteAddr:     r.RemoteAddr,
		TaskID:         firstOf(r.Header, in.config.TaskHeader, otherTaskHeaders),
		Status:         firstOf(r.Header, in.config.StatusHeader, otherStatusHeaders),
		Attempt:        positive(r.Header.Get(headerAttempt)),
		UpstreamStatus: positive(r.Header.Get(headerUpstreamStatus)),
		Headers:        headersOf(r),
		BodySize:       body.size,
		BodyKept:       len(body.kept),
		body:           body.kept,
	}
	if body.err != nil {
		c.BodyError = body.err.Error()
	}
	c.Signature, c.SignatureError = in.judge(r.Header, body)
	return c
}

// firstOf returns the header with the given name, or else the first of the others that
// is present.
func firstOf(h http.Header, name string, others []string) string {
	value := h.Get(name)
	for _, other := range others {
		value = cmp.Or(value, h.Get(other))
	}
	return value
}

// judge verifies the signature of a callback, and returns the outcome and its reason.
func (in *Inbox) judge(h http.Header, body received) (verdict, reason string) {
	switch {
	case h.Get(webhook.HeaderSignature) == "":
		return signatureUnsigned, ""
	case len(in.config.Keys) == 0:
		return signatureUnchecked, "the inbox has no secret to check it with"
	case body.err != nil:
		return signatureUnchecked, "the body is incomplete"
	case int64(len(body.kept)) < body.size:
		return signatureUnchecked, fmt.Sprintf("only the first %d bytes of the body are kept", len(body.kept))
	}
	err := webhook.Verify(in.config.Keys, h, body.kept, time.Now())
	switch {
	case err == nil:
		return signatureVerified, ""
	case errors.Is(err, webhook.ErrUnsigned): // a signature without an ID or a time
		return signatureFailed, "the ID or the timestamp is missing"
	default:
		return signatureFailed, err.Error()
	}
}

// positive parses a number above zero. It returns 0 for any other value.
func positive(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// headersOf lists a request's headers. net/http keeps the Host header in a field of its
// own.
func headersOf(r *http.Request) []pair {
	list := []pair{{"host", r.Host}}
	for name, values := range r.Header {
		for _, value := range values {
			list = append(list, pair{strings.ToLower(name), value})
		}
	}
	slices.SortStableFunc(list, func(a, b pair) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// cost estimates the memory that a callback uses.
func (c *callback) cost() int64 {
	const (
		itself  = 1 << 10 // with its entries in the memory's list and map
		perPair = 64      // for the two strings of a header, besides their bytes
	)
	cost := itself + cap(c.body) + len(c.Path) + len(c.Query)
	for _, h := range c.Headers {
		cost += perPair + len(h.Name) + len(h.Value)
	}
	return int64(cost)
}

// shown returns a callback with up to limit bytes of its body.
func (c *callback) shown(limit int) shownCallback {
	part := c.body[:min(limit, len(c.body))]
	s := shownCallback{callback: c, BodyTruncated: int64(len(part)) < c.BodySize}
	if text := part[:len(part)-splitRune(part)]; s.BodyTruncated && utf8.Valid(text) {
		part = text // cut between characters
	}
	if utf8.Valid(part) {
		s.Body = string(part)
	} else {
		s.BodyBase64 = part
	}
	s.Pairs, s.PairsTruncated = decodePairs(c.contentType(), string(part), s.BodyTruncated)
	return s
}

func (c *callback) contentType() string {
	for _, h := range c.Headers {
		if h.Name == "content-type" {
			return h.Value
		}
	}
	return ""
}

// splitRune returns the length of an incomplete character at the end of b.
func splitRune(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if tail := b[len(b)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
