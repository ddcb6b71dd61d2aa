package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"strconv"
	"time"
)

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
	for _, key := range keys {
		m := key.material()
		if m.secret == nil {
			continue
		}
		mac := hmac.New(sha256.New, []byte(secretPrefix+base64.StdEncoding.EncodeToString(m.secret)))
		// A hash takes all that is written to it.
		encoder := base64.NewEncoder(base64.StdEncoding, mac)
		_, _ = encoder.Write(body)
		_ = encoder.Close()
		_, _ = io.WriteString(mac, ":"+strconv.FormatInt(at.Unix(), 10))
		return hex.EncodeToString(mac.Sum(nil))
	}
	return ""
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
