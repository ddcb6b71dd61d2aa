package webhook

import "time"

// The headers of a callback with Beam's signature.
const (
	HeaderBeamTimestamp = "X-Task-Timestamp"
	HeaderBeamSignature = "X-Task-Signature"
)

// SignBeam returns the value of Beam's signature header: the HMAC-SHA256, in
// hexadecimal, of the body in base64, a colon and at.Unix(). The first whsec_ key
// signs, because the header has room for one signature. The value is empty if there is
// no such key.
//
// The HMAC's key is the text of the key, including whsec_, not the bytes that it
// encodes. Receivers that were written for Beam pass the configured text to the HMAC,
// and most byte strings are not text.
func SignBeam(keys []Key, at time.Time, body []byte) string {
	s := NewBeamSigner(keys, at)
	_, _ = s.Write(body) // returns no error
	return s.Signature()
}

// CanSignBeam reports whether SignBeam signs with one of the keys.
func CanSignBeam(keys []Key) bool {
	for _, key := range keys {
		if key.material().secret != nil {
			return true
		}
	}
	return false
}
