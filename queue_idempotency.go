package callback

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// keyOf returns the request's idempotency key, hashed with what it is scoped to, or
// nil if there is none. Its digest is that of the body. Clients choose keys, "1" for
// example: without a scope one would get another's task ID, and with it the result.
func (q *TaskQueue) keyOf(r *http.Request, body *boundedBody) *engine.Key {
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return nil
	}
	scope := q.opts.IdempotencyScope
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		scope = repl.ReplaceAll(scope, "")
	}
	body.hash = sha256.New()
	return &engine.Key{
		Hash:   hashOf(q.Name, key, r.Method, r.RequestURI, scope),
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
