package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The prefixes of keys in the specification. Each one identifies the scheme of its key.
const (
	secretPrefix  = "whsec_" // HMAC-SHA256, shared by both ends
	privatePrefix = "whsk_"  // ed25519, the sender's
	publicPrefix  = "whpk_"  // ed25519, the receivers'
)

// The lengths of an HMAC secret that the specification permits, in bytes. An attacker
// can guess a shorter one offline from a single callback.
const (
	minSecret = 24
	maxSecret = 64
)

// A Key signs callbacks, verifies them, or both. However it is printed or encoded, it
// shows only its kind, never the secret. The zero Key neither signs nor verifies. Keys
// are immutable and may be used from several goroutines at once.
type Key struct {
	// reveal is a function because fmt cannot call the methods of a Key in an
	// unexported field: fmt prints the content of such a field, and follows pointers.
	// It cannot look into a function. reveal is nil in the zero Key.
	reveal func() material
}

type material struct {
	prefix  string
	secret  []byte             // whsec_
	private ed25519.PrivateKey // whsk_
	public  ed25519.PublicKey  // whsk_ and whpk_
}

func newKey(m material) Key { return Key{reveal: func() material { return m }} }

// material returns the parts of the key. They are empty for the zero Key.
func (k Key) material() material {
	if k.reveal == nil {
		return material{}
	}
	return k.reveal()
}

// ParseKey parses a key that signs: whsec_ with 24 to 64 bytes, or whsk_ with an
// ed25519 private key (64 bytes, or its seed of 32 bytes), in padded standard base64.
// Its errors contain no part of the key.
func ParseKey(s string) (Key, error) {
	if strings.HasPrefix(s, publicPrefix) {
		return Key{}, errors.New("a whpk_ key is public: it verifies but cannot sign")
	}
	return ParseVerifyKey(s)
}

// ParseVerifyKey is ParseKey for a receiver: it also parses a whpk_ public key.
func ParseVerifyKey(s string) (Key, error) {
	prefix, encoded, found := strings.Cut(s, "_")
	if !found {
		return Key{}, errors.New("a key starts with whsec_ or whsk_")
	}
	prefix += "_"
	if prefix != secretPrefix && prefix != privatePrefix && prefix != publicPrefix {
		// The error does not quote the prefix: if the key was pasted incorrectly, its
		// beginning is part of the secret.
		return Key{}, errors.New("a key starts with whsec_ or whsk_")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	// The decoder skips line breaks, but a key with a line break was copied
	// incorrectly.
	if err != nil || strings.ContainsAny(encoded, "\r\n") {
		return Key{}, fmt.Errorf("what follows %s is not base64", prefix)
	}
	switch prefix {
	case secretPrefix:
		return parseSecret(raw)
	case privatePrefix:
		return parsePrivate(raw)
	default:
		return parsePublic(raw)
	}
}

func parseSecret(raw []byte) (Key, error) {
	if len(raw) < minSecret || len(raw) > maxSecret {
		return Key{}, fmt.Errorf("a whsec_ key has %d to %d bytes, this one %d", minSecret, maxSecret, len(raw))
	}
	return newKey(material{prefix: secretPrefix, secret: raw}), nil
}

func parsePrivate(raw []byte) (Key, error) {
	if len(raw) != ed25519.SeedSize && len(raw) != ed25519.PrivateKeySize {
		return Key{}, fmt.Errorf("a whsk_ key has %d bytes, or %d for its seed; this one %d",
			ed25519.PrivateKeySize, ed25519.SeedSize, len(raw))
	}
	private := ed25519.NewKeyFromSeed(raw[:ed25519.SeedSize])
	// Signing one message under two public keys reveals the private key ("double public
	// key signing oracle"), so a public half that does not match is refused.
	if len(raw) == ed25519.PrivateKeySize && !private.Equal(ed25519.PrivateKey(raw)) {
		return Key{}, errors.New("the two halves of the whsk_ key do not belong together")
	}
	public := ed25519.PublicKey(private[ed25519.SeedSize:])
	return newKey(material{prefix: privatePrefix, private: private, public: public}), nil
}

func parsePublic(raw []byte) (Key, error) {
	if len(raw) != ed25519.PublicKeySize {
		return Key{}, fmt.Errorf("a whpk_ key has %d bytes, this one %d", ed25519.PublicKeySize, len(raw))
	}
	return newKey(material{prefix: publicPrefix, public: raw}), nil
}

// verifier returns the identifier of the key's scheme and a function that verifies
// signatures of one message. The work that all signatures share is done once.
func (k Key) verifier(head string, body []byte) (scheme string, verify func(signature []byte) bool) {
	switch m := k.material(); {
	case m.secret != nil:
		expected := mac(m.secret, head, body)
		return schemeHMAC, func(signature []byte) bool { return hmac.Equal(expected, signature) }
	case m.public != nil:
		content := append([]byte(head), body...)
		return schemeEd25519, func(signature []byte) bool { return ed25519.Verify(m.public, content, signature) }
	default:
		return "", nil
	}
}

func mac(secret []byte, head string, body []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(head))
	mac.Write(body)
	return mac.Sum(nil)
}

// String returns the key's kind, as in "whsec_[redacted]".
func (k Key) String() string {
	if k.reveal == nil {
		return "no key"
	}
	return k.material().prefix + "[redacted]"
}

// GoString returns the same as String.
func (k Key) GoString() string { return k.String() }

// Format writes String for every verb: %x and %d must not show the bytes.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// MarshalText returns String, so that encoders and structured loggers do not write the
// secret.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
