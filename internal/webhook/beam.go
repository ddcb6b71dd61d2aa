package webhook

import "time"

// The headers of a callback that is signed as Beam signs its own.
const (
	HeaderBeamTimestamp = "X-Task-Timestamp"
	HeaderBeamSignature = "X-Task-Signature"
)

// SignBeam returns the value of Beam's signature header: HMAC-SHA256, in
// hexadecimal, over the body in base64, a colon and at.Unix(). The first whsec_
// key signs: the header has room for one signature. It is empty if there is no
// such key.
//
// The HMAC's key is the text of the key, whsec_ included, and not the bytes that
// it stands for. Receivers that were written for Beam pass the text they were
// given to the HMAC, and most bytes are no text.
func SignBeam(keys []Key, at time.Time, body []byte) string {
	s := NewBeamSigner(keys, at)
	_, _ = s.Write(body) // returns no error
	return s.Signature()
}

// CanSignBeam says whether SignBeam would sign with the keys.
func CanSignBeam(keys []Key) bool {
	for _, key := range keys {
		if key.material().secret != nil {
			return true
		}
	}
	return false
}
