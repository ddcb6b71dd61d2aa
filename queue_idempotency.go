package callback

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// keyOf returns the idempotency key of a request, nil if it has none. Its digest is
// that of the body.
func (q *TaskQueue) keyOf(r *http.Request, body *boundedBody) *engine.Key {
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return nil
	}
	body.hash = sha256.New()
	return &engine.Key{
		Hash:   hashOf(q.Name, key),
		Digest: func() string { return hex.EncodeToString(body.hash.Sum(nil)) },
	}
}

// hashOf returns a digest of some words, and of where one ends and the next begins.
func hashOf(words ...string) string {
	sum := sha256.New()
	for _, word := range words {
		part := sha256.Sum256([]byte(word))
		sum.Write(part[:])
	}
	return hex.EncodeToString(sum.Sum(nil))
}
