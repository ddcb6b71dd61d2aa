package profile

import (
	"net/http"
	"strconv"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Beam2 is the name of the profile of Beam's second API: a JSON body with the
// result as data, and one signature over it.
const Beam2 = "beam2"

type beam2 struct{ none }

// Traits implements [Profile].
func (beam2) Traits() Traits {
	return Traits{
		Name: Beam2, Format: "data", TaskHeader: "X-Task-ID", StatusHeader: "X-Task-Status", OwnFormat: true,
		Headers: []string{webhook.HeaderBeamTimestamp, webhook.HeaderBeamSignature},
	}
}

// SetHeader implements [Profile]. The timestamp is sent with or without a signature.
func (beam2) SetHeader(h http.Header, _ *task.Record, at time.Time) {
	h.Set(webhook.HeaderBeamTimestamp, strconv.FormatInt(at.Unix(), 10))
}

// Signer implements [Profile].
func (beam2) Signer(keys []webhook.Key, at time.Time) Signer {
	return beamSigner{webhook.NewBeamSigner(keys, at)}
}

// CanSign implements [Profile].
func (beam2) CanSign(keys []webhook.Key) bool { return webhook.CanSignBeam(keys) }

type beamSigner struct{ *webhook.BeamSigner }

// SetHeader implements [Signer].
func (s beamSigner) SetHeader(h http.Header) {
	if signature := s.Signature(); signature != "" {
		h.Set(webhook.HeaderBeamSignature, signature)
	}
}
