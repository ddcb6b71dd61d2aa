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

// The gateway's own headers. Those with the task's ID and status are configured.
const (
	headerAttempt        = "callback-attempt"
	headerUpstreamStatus = "callback-upstream-status"
)

// Where else they stand: in callbacks of the profiles beam2 and openfaas, and in
// those of other senders of Standard Webhooks.
var (
	otherTaskHeaders   = []string{webhook.HeaderID, "X-Task-ID", "X-Call-Id"}
	otherStatusHeaders = []string{"X-Task-Status"}
)

// What became of a signature.
const (
	signatureVerified  = "verified"
	signatureFailed    = "failed"
	signatureUnsigned  = "unsigned"
	signatureUnchecked = "unchecked"
)

// callback is a request as it was received. Its tags are the inbox's JSON.
type callback struct {
	// Number counts the callbacks of this inbox, from 1.
	Number uint64 `json:"number"`
	// ReceivedAt is when all of it was there.
	ReceivedAt time.Time `json:"received_at"`
	Method     string    `json:"method"`
	// Path is decoded, Query as it was sent.
	Path  string `json:"path"`
	Query string `json:"query"`
	Proto string `json:"proto"`
	// RemoteAddr is the address and port of the sender, or of the proxy before us.
	RemoteAddr string `json:"remote_addr"`

	// TaskID is the header beam-task-id, else one of otherTaskHeaders, else empty.
	TaskID string `json:"task_id"`
	// Status is the header x-beam-task-status, else one of otherStatusHeaders, else
	// empty.
	Status string `json:"status"`
	// Attempt and UpstreamStatus are missing if the sender does not say.
	Attempt        int `json:"attempt,omitempty"`
	UpstreamStatus int `json:"upstream_status,omitempty"`
	// SincePreviousMS is the time since the callback before of the same task, in
	// milliseconds; missing if there is none that is remembered.
	SincePreviousMS *int64 `json:"since_previous_ms,omitempty"`

	// Signature is verified, failed, unsigned or unchecked, and SignatureError
	// says why it failed or could not be checked.
	Signature      string `json:"signature"`
	SignatureError string `json:"signature_error,omitempty"`

	// Headers are sorted by name, in lower case; repeated ones keep their order.
	Headers []pair `json:"headers"`

	// BodySize is what came of the body in bytes, BodyKept what is remembered of
	// it, and BodyError why not all of it came.
	BodySize  int64  `json:"body_size"`
	BodyKept  int    `json:"body_kept"`
	BodyError string `json:"body_error,omitempty"`

	body []byte
}

// pair is a header, or a pair of a body. In jq, from_entries makes an object of
// a list of them.
type pair struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// shownCallback is a callback with as much of its body as is shown in JSON.
type shownCallback struct {
	*callback

	// Pairs are those of a form or the members of a JSON object, in their order,
	// repeats kept. They are an empty list if the body is neither, or is JSON
	// that is not all there.
	Pairs []pair `json:"pairs"`
	// PairsTruncated: there are more, or the last one is longer.
	PairsTruncated bool `json:"pairs_truncated,omitempty"`

	// Body is the body if it is UTF-8, BodyBase64 if it is not.
	Body       string `json:"body"`
	BodyBase64 []byte `json:"body_base64,omitempty"`
	// BodyTruncated: what stands here is not all that was sent.
	BodyTruncated bool `json:"body_truncated,omitempty"`
}

// newCallback describes a request. What only the memory knows is missing yet.
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

// firstOf returns the header of the given name, or the first of the others that is
// there.
func firstOf(h http.Header, name string, others []string) string {
	value := h.Get(name)
	for _, other := range others {
		value = cmp.Or(value, h.Get(other))
	}
	return value
}

// judge says what the signature of a callback is worth, and why.
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
	case errors.Is(err, webhook.ErrUnsigned): // there is a signature, but no ID or no time
		return signatureFailed, "the ID or the timestamp is missing"
	default:
		return signatureFailed, err.Error()
	}
}

// positive reads a number above zero; anything else is 0.
func positive(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// headersOf lists a request's headers. net/http keeps Host elsewhere.
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

// cost is about what a callback takes in memory.
func (c *callback) cost() int64 {
	const (
		itself  = 1 << 10 // with its places in the memory's list and map
		perPair = 64      // of a header's two strings, beside their bytes
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
		part = text // what is cut off stands between characters
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

// splitRune returns how many bytes at the end of b are the beginning of a
// character whose end is missing.
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
