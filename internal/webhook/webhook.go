// Package webhook signs callbacks, and verifies them, as Standard Webhooks 1.0
// has it (https://www.standardwebhooks.com), so that receivers can use any of
// that specification's libraries.
//
// Three headers carry the proof: webhook-id, which stays the same for every
// attempt of one callback; webhook-timestamp, the time of this attempt; and
// webhook-signature, one signature for each key, made over
// "<id>.<timestamp>.<body>":
//
//	keys := []webhook.Key{…}                                  // from ParseKey
//	signature := webhook.Sign(keys, taskID, now, body)        // v1,… v1a,…
//	err := webhook.Verify(keys, request.Header, body, time.Now())
//
// A key is rotated by signing with both the old and the new one until every
// receiver knows the new one. The headers and signatures made here will not
// change: receivers depend on them.
package webhook

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The headers of a signed callback.
const (
	HeaderID        = "webhook-id"
	HeaderTimestamp = "webhook-timestamp"
	HeaderSignature = "webhook-signature"
)

// Identifiers of the signature schemes.
const (
	schemeHMAC    = "v1"
	schemeEd25519 = "v1a"
)

// Tolerance is how far a callback's timestamp may be from the receiver's
// clock, either way. It bounds how long a captured callback can be replayed;
// five minutes is what the specification's own libraries allow.
const Tolerance = 5 * time.Minute

// maxSignatures is how many signatures of one callback are looked at. A header
// of a megabyte holds ten thousand, each of which costs an ed25519
// verification per key: a second of work for one request.
const maxSignatures = 16

// What Verify finds wrong.
var (
	// ErrUnsigned: one of the three headers is missing.
	ErrUnsigned = errors.New("the callback is not signed")
	// ErrMalformed: the ID or the timestamp is not what the specification allows.
	ErrMalformed = errors.New("the signature headers are malformed")
	// ErrMismatch: no signature is of any of the keys and this body.
	ErrMismatch = errors.New("no signature matches")
	// ErrStale: a signature is right, but its time is not: a replay, or a clock
	// that is wrong.
	ErrStale = errors.New("the signature is right, its timestamp is more than 5 minutes off")
)

// Sign returns the value of the signature header: the signatures of all keys,
// in their order. It is empty if there are no keys. The ID must hold no full
// stop, and the headers must go out with this ID and at.Unix().
func Sign(keys []Key, id string, at time.Time, body []byte) string {
	s := NewSigner(keys, id, at)
	_, _ = s.Write(body) // returns no error
	return s.Signature()
}

// Verify returns nil if one of the keys made one of the signatures in the
// headers, for this body and not more than Tolerance from now. Otherwise it
// returns ErrUnsigned, ErrMalformed, ErrMismatch or ErrStale.
func Verify(keys []Key, h http.Header, body []byte, now time.Time) error {
	id, timestamp, signatures := h.Get(HeaderID), h.Get(HeaderTimestamp), h.Get(HeaderSignature)
	if id == "" || timestamp == "" || signatures == "" {
		return ErrUnsigned
	}
	// "a" "1" "2.body" and "a.1" "2" "body" are signed alike. An attacker who
	// captured the first could replay it as the second, with a time of their choice.
	if strings.Contains(id, ".") {
		return ErrMalformed
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil || strconv.FormatInt(seconds, 10) != timestamp {
		return ErrMalformed
	}
	if !anyMatches(keys, strings.Fields(signatures), signedHead(id, timestamp), body) {
		return ErrMismatch
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > Tolerance || age < -Tolerance {
		return ErrStale
	}
	return nil
}

func anyMatches(keys []Key, signatures []string, head string, body []byte) bool {
	signatures = signatures[:min(len(signatures), maxSignatures)]
	for _, key := range keys {
		scheme, verify := key.verifier(head, body)
		for _, s := range signatures {
			claimed, encoded, _ := strings.Cut(s, ",")
			// A scheme we do not know may be one that a newer sender adds; and
			// a key never judges a signature of another scheme than its own.
			if claimed != scheme || scheme == "" {
				continue
			}
			signature, err := base64.StdEncoding.Strict().DecodeString(encoded)
			if err == nil && verify(signature) {
				return true
			}
		}
	}
	return false
}

// signedHead is what is signed before the body.
func signedHead(id, timestamp string) string { return id + "." + timestamp + "." }
