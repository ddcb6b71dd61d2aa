package webhook

import (
	"testing"
	"time"
)

func mustKeys(t *testing.T, texts ...string) (keys []Key) {
	t.Helper()
	for _, text := range texts {
		key, err := ParseKey(text)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	return keys
}

const (
	beamKey    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	beamSecond = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
	beamOther  = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

// The expected signatures come from Python's hmac and base64, used as Beam's
// documentation tells receivers to verify signatures.
func TestBeamSignatures(t *testing.T) {
	t.Parallel()
	at := time.Unix(1735689600, 999_999_999)
	for name, test := range map[string]struct {
		keys []Key
		body string
		want string
	}{
		"result":             {mustKeys(t, beamKey), `{"data":{"result":10}}`, "f256684cebb404854690d17ef0fd555f503690b1cf63fee7097f7780a0572e30"},
		"body of two thirds": {mustKeys(t, beamKey), `{"data":null}`, "511bdebfbb13d636b503c479a5696e6618467c5c3144aaa80f3903b65799467b"},
		"empty body":         {mustKeys(t, beamKey), "", "b941b5ee45688eaf559435f5ebea1bcf4ba05f96bb19af4ae4b4775035f2001a"},
		"first suitable key": {mustKeys(t, beamOther, beamKey, beamSecond), `{"data":{"result":10}}`, "f256684cebb404854690d17ef0fd555f503690b1cf63fee7097f7780a0572e30"},
		"another key":        {mustKeys(t, beamSecond, beamKey), `{"data":{"result":10}}`, "146f3f40a3ce7acc0b2ab90f25b438423c0ded692a88de5633aef3f428634783"},
		"unsuitable key":     {mustKeys(t, beamOther), `{"data":null}`, ""},
		"no key":             {nil, `{"data":null}`, ""},
		"zero key":           {[]Key{{}}, `{"data":null}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := SignBeam(test.keys, at, []byte(test.body)); got != test.want {
				t.Errorf("the signature is %q, want %q", got, test.want)
			}
			if CanSignBeam(test.keys) != (test.want != "") {
				t.Errorf("CanSignBeam says %v", CanSignBeam(test.keys))
			}
		})
	}
}
