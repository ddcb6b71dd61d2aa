package webhook

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
)

// derivedInfo keeps derived keys apart from other uses of the same secret. It must
// not change: receivers have the keys that it made.
const derivedInfo = "caddy-callback derived webhook key v1\n"

// Derive returns the key of one receiver, made from k and a value that stands for
// the receiver, such as a customer's ID. Who has a derived key can make neither k
// nor the key of another value from it. It is of the kind of k, and the zero Key
// for a public one.
//
// It is HKDF (RFC 5869) with SHA-256, no salt, and the info
// "caddy-callback derived webhook key v1\n" followed by the value: 32 bytes, the
// secret of a whsec_ key or the seed of a whsk_ key.
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
		return Key{} // only for a length that no hash function can give
	}
	if m.secret != nil {
		return newKey(material{prefix: secretPrefix, secret: derived})
	}
	private := ed25519.NewKeyFromSeed(derived)
	return newKey(material{prefix: privatePrefix, private: private, public: ed25519.PublicKey(private[ed25519.SeedSize:])})
}

// VerifyText returns what a receiver verifies with, as [ParseVerifyKey] reads it: a
// whsec_ key, which is secret, or the whpk_ half of an ed25519 key, which is not. It
// is empty for the zero Key.
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
