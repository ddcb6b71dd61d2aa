// Package webhook signs and verifies callbacks according to Standard Webhooks 1.0
// (https://www.standardwebhooks.com), so that receivers can use any of that
// specification's libraries.
//
// A signed callback has three headers: webhook-id, which is the same for every attempt
// of one callback; webhook-timestamp, the time of the attempt; and webhook-signature,
// one signature for each key, over "<id>.<timestamp>.<body>":
//
//	keys := []webhook.Key{…}                                  // from ParseKey
//	signature := webhook.Sign(keys, taskID, now, body)        // v1,… v1a,…
//	err := webhook.Verify(keys, request.Header, body, time.Now())
//
// To rotate a key, sign with both the old and the new one until every receiver knows
// the new one. The headers and signatures must not change: receivers depend on them.
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

// Tolerance is the largest difference between a callback's timestamp and the receiver's
// clock, in both directions. It bounds how long a captured callback can be replayed.
// Five minutes is what the specification's own libraries allow.
const Tolerance = 5 * time.Minute

// maxSignatures is how many signatures of one callback are checked. A header of a
// megabyte holds ten thousand, and each one costs an ed25519 verification per key: a
// second of work for one request.
const maxSignatures = 16

// The errors of Verify.
var (
	// ErrUnsigned means that one of the three headers is missing.
	ErrUnsigned = errors.New("the callback is not signed")
	// ErrMalformed means that the specification does not allow the ID or the timestamp.
	ErrMalformed = errors.New("the signature headers are malformed")
	// ErrMismatch means that no signature of this body was made with one of the keys.
	ErrMismatch = errors.New("no signature matches")
	// ErrStale means that a signature is right, but its timestamp is not: the callback
	// was replayed, or a clock is wrong.
	ErrStale = errors.New("the signature is right, its timestamp is more than 5 minutes off")
)

// Sign returns the value of the signature header: the signatures of all keys, in their
// order. It is empty if there are no keys. The ID must not contain a full stop, and the
// headers must be sent with this ID and at.Unix().
func Sign(keys []Key, id string, at time.Time, body []byte) string {
	s := NewSigner(keys, id, at)
	_, _ = s.Write(body) // returns no error
	return s.Signature()
}

// Verify returns nil if one of the keys made one of the signatures in the headers for
// this body, and the timestamp is not more than Tolerance from now. Otherwise it
// returns ErrUnsigned, ErrMalformed, ErrMismatch or ErrStale.
func Verify(keys []Key, h http.Header, body []byte, now time.Time) error {
	id, timestamp, signatures := h.Get(HeaderID), h.Get(HeaderTimestamp), h.Get(HeaderSignature)
	if id == "" || timestamp == "" || signatures == "" {
		return ErrUnsigned
	}
	// "a" "1" "2.body" and "a.1" "2" "body" have the same signatures. An attacker who
	// captured the first could replay it as the second, with a timestamp of their
	// choice.
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
			// Unknown schemes are skipped: a newer sender may add them. A key never
			// verifies a signature of another scheme.
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

// signedHead returns the signed text that precedes the body.
func signedHead(id, timestamp string) string { return id + "." + timestamp + "." }
