package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"
)

// Signer computes the value of the signature header, as [Sign] does, for a body that is
// written to it in pieces.
//
// An ed25519 signature needs the whole message twice, so with such a key a Signer keeps
// the body in memory. See [NeedBody].
type Signer struct {
	keys []material
	macs []hash.Hash // by key; nil for ed25519
	body *bytes.Buffer
	w    io.Writer
}

// NewSigner returns a Signer for a callback with the ID and timestamp.
func NewSigner(keys []Key, id string, at time.Time) *Signer {
	head := signedHead(id, strconv.FormatInt(at.Unix(), 10))
	s := new(Signer)
	var writers []io.Writer
	for _, key := range keys {
		m := key.material()
		var h hash.Hash
		switch {
		case m.secret != nil:
			h = hmac.New(sha256.New, m.secret)
			writers = append(writers, h)
		case m.private != nil && s.body == nil:
			s.body = new(bytes.Buffer)
			writers = append(writers, s.body)
		case m.private == nil:
			continue
		}
		s.keys, s.macs = append(s.keys, m), append(s.macs, h)
	}
	s.w = io.MultiWriter(writers...)
	_, _ = io.WriteString(s.w, head) // writes to hashes and buffers never fail
	return s
}

// Write implements [io.Writer]. It returns no error.
func (s *Signer) Write(p []byte) (int, error) { return s.w.Write(p) }

// Signature returns the value of the header. It is empty if no key signs.
func (s *Signer) Signature() string {
	signatures := make([]string, len(s.keys))
	for i, m := range s.keys {
		scheme, signature := schemeEd25519, []byte(nil)
		if s.macs[i] != nil {
			scheme, signature = schemeHMAC, s.macs[i].Sum(nil)
		} else {
			signature = ed25519.Sign(m.private, s.body.Bytes())
		}
		signatures[i] = scheme + "," + base64.StdEncoding.EncodeToString(signature)
	}
	return strings.Join(signatures, " ")
}

// NeedBody reports whether a Signer with the keys keeps the body in memory.
func NeedBody(keys []Key) bool {
	for _, key := range keys {
		if key.material().private != nil {
			return true
		}
	}
	return false
}

// BeamSigner computes the value of Beam's signature header, as [SignBeam] does, for a
// body that is written to it in pieces.
type BeamSigner struct {
	at  time.Time
	mac hash.Hash // nil if no key signs
	w   io.WriteCloser
}

// NewBeamSigner returns a BeamSigner for a callback with the timestamp.
func NewBeamSigner(keys []Key, at time.Time) *BeamSigner {
	for _, key := range keys {
		m := key.material()
		if m.secret == nil {
			continue
		}
		mac := hmac.New(sha256.New, []byte(secretPrefix+base64.StdEncoding.EncodeToString(m.secret)))
		return &BeamSigner{at, mac, base64.NewEncoder(base64.StdEncoding, mac)}
	}
	return new(BeamSigner)
}

// Write implements [io.Writer]. It returns no error.
func (s *BeamSigner) Write(p []byte) (int, error) {
	if s.mac == nil {
		return len(p), nil
	}
	return s.w.Write(p)
}

// Signature returns the value of the header. It is empty if no key signs. Do not write
// to the BeamSigner afterwards.
func (s *BeamSigner) Signature() string {
	if s.mac == nil {
		return ""
	}
	_ = s.w.Close() // writes to a hash never fail
	_, _ = io.WriteString(s.mac, ":"+strconv.FormatInt(s.at.Unix(), 10))
	return hex.EncodeToString(s.mac.Sum(nil))
}
