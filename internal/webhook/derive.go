package webhook

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
)

// derivedInfo separates derived keys from other uses of the same secret. It must not
// change: receivers have keys that were derived with it.
const derivedInfo = "caddy-callback derived webhook key v1\n"

// Derive returns the key of one receiver, derived from k and a value that identifies
// the receiver, such as a customer's ID. The owner of a derived key can compute neither
// k nor the key of another value. The derived key has the kind of k. It is the zero Key
// if k is the zero Key or a public key.
//
// The derivation is HKDF (RFC 5869) with SHA-256, no salt, and the info "caddy-callback
// derived webhook key v1\n" followed by the value. The 32 bytes are the secret of a
// whsec_ key or the seed of a whsk_ key.
func (k Key) Derive(value string) Key {
	m := k.material()
	from := m.secret
	if m.private != nil {
		from = m.private.Seed()
	}
	if from == nil {
		return Key{}
	}
	derived, err := hkdf.Key(sha256.New, from, nil, derivedInfo+value, ed25519.SeedSize)
	if err != nil {
		return Key{} // HKDF fails only if the length is too large
	}
	if m.secret != nil {
		return newKey(material{prefix: secretPrefix, secret: derived})
	}
	private := ed25519.NewKeyFromSeed(derived)
	return newKey(material{prefix: privatePrefix, private: private, public: ed25519.PublicKey(private[ed25519.SeedSize:])})
}

// VerifyText returns the key with which a receiver verifies, in the format that
// [ParseVerifyKey] reads: a whsec_ key, which is secret, or the whpk_ half of an
// ed25519 key, which is public. It is empty for the zero Key.
func (k Key) VerifyText() string {
	switch m := k.material(); {
	case m.secret != nil:
		return secretPrefix + base64.StdEncoding.EncodeToString(m.secret)
	case m.public != nil:
		return publicPrefix + base64.StdEncoding.EncodeToString(m.public)
	default:
		return ""
	}
}
