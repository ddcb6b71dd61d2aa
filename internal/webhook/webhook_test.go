package webhook_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

const (
	specID  = "msg_p5jXN8AQM9LWM0D4loKWxJek"
	specV1  = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
	specV1a = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="

	otherSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
)

var (
	specBody = []byte(`{"test": 2432232314}`)
	specTime = time.Unix(1614265330, 0)
	now      = specTime
)

func header(id, timestamp, signature string) http.Header {
	h := make(http.Header)
	h.Set(webhook.HeaderID, id)
	h.Set(webhook.HeaderTimestamp, timestamp)
	h.Set(webhook.HeaderSignature, signature)
	return h
}

func TestSignMatchesSpecification(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		keys []string
		want string
	}{
		{"secret", []string{specSecret}, specV1},
		{"private key", []string{specPrivate}, specV1a},
		{"seed", []string{specSeed}, specV1a},
		{"two keys", []string{specSecret, specPrivate}, specV1 + " " + specV1a},
		{"public key", []string{specPublic, specSecret}, specV1},
		{"no keys", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := webhook.Sign(mustParse(t, tt.keys...), specID, specTime, specBody); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
	if got := webhook.Sign([]webhook.Key{{}}, specID, specTime, specBody); got != "" {
		t.Errorf("the zero key signed: %s", got)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	const at = "1614265330"
	tooMany := strings.Repeat("v1,AAAA ", 16)
	tests := []struct {
		name   string
		keys   []string
		header http.Header
		body   string
		want   error
	}{
		{"v1 signature", []string{specSecret}, header(specID, at, specV1), "", nil},
		{"v1a signature and public key", []string{specPublic}, header(specID, at, specV1a), "", nil},
		{"v1a signature and private key", []string{specPrivate}, header(specID, at, specV1a), "", nil},
		{"several keys", []string{otherSecret, specPublic, specSecret}, header(specID, at, specV1), "", nil},
		{"several signatures", []string{specSecret}, header(specID, at, "v1,AAAA v9,x "+specV1a+" "+specV1), "", nil},
		{"maximum number of signatures", []string{specSecret}, header(specID, at, tooMany[8:]+specV1), "", nil},
		{"too many signatures", []string{specSecret}, header(specID, at, tooMany+specV1), "", webhook.ErrMismatch},

		{"no headers at all", []string{specSecret}, http.Header{}, "", webhook.ErrUnsigned},
		{"no ID", []string{specSecret}, header("", at, specV1), "", webhook.ErrUnsigned},
		{"no timestamp", []string{specSecret}, header(specID, "", specV1), "", webhook.ErrUnsigned},
		{"no signature", []string{specSecret}, header(specID, at, ""), "", webhook.ErrUnsigned},

		{"a full stop in the ID", []string{specSecret}, header("a.b", at, specV1), "", webhook.ErrMalformed},
		{"a timestamp in words", []string{specSecret}, header(specID, "today", specV1), "", webhook.ErrMalformed},
		{"a timestamp with a plus", []string{specSecret}, header(specID, "+"+at, specV1), "", webhook.ErrMalformed},
		{"timestamp with a leading zero", []string{specSecret}, header(specID, "0"+at, specV1), "", webhook.ErrMalformed},
		{"a timestamp with a fraction", []string{specSecret}, header(specID, at+".5", specV1), "", webhook.ErrMalformed},
		{"a timestamp beyond 64 bits", []string{specSecret}, header(specID, "99999999999999999999", specV1), "", webhook.ErrMalformed},

		{"another ID", []string{specSecret}, header("msg_x", at, specV1), "", webhook.ErrMismatch},
		{"another time", []string{specSecret}, header(specID, "1614265331", specV1), "", webhook.ErrMismatch},
		{"another body", []string{specSecret}, header(specID, at, specV1), `{"test": 2432232315}`, webhook.ErrMismatch},
		{"another body under ed25519", []string{specPublic}, header(specID, at, specV1a), "x", webhook.ErrMismatch},
		{"another secret", []string{otherSecret}, header(specID, at, specV1), "", webhook.ErrMismatch},
		{"no keys", nil, header(specID, at, specV1), "", webhook.ErrMismatch},
		{"a signature cut short", []string{specSecret}, header(specID, at, specV1[:len(specV1)-4]), "", webhook.ErrMismatch},
		{"a v1a signature cut short", []string{specPublic}, header(specID, at, "v1a,AAAA"), "", webhook.ErrMismatch},
		{"an empty v1 signature", []string{specSecret}, header(specID, at, "v1,"), "", webhook.ErrMismatch},
		{"a scheme without signature", []string{specSecret, specPublic}, header(specID, at, "v1 v1a"), "", webhook.ErrMismatch},
		{"a signature without scheme", []string{specSecret}, header(specID, at, strings.TrimPrefix(specV1, "v1,")), "", webhook.ErrMismatch},
		{"unknown scheme", []string{specSecret}, header(specID, at, "v2"+specV1[2:]), "", webhook.ErrMismatch},
		{"HMAC labeled as ed25519", []string{specSecret, specPublic}, header(specID, at, "v1a"+specV1[2:]), "", webhook.ErrMismatch},
		{"signatures separated by a comma", []string{specSecret}, header(specID, at, specV1+","+specV1), "", webhook.ErrMismatch},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			body := specBody
			if tt.body != "" {
				body = []byte(tt.body)
			}
			if err := webhook.Verify(mustParse(t, tt.keys...), tt.header, body, specTime); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	if err := webhook.Verify([]webhook.Key{{}}, header(specID, at, specV1+" ,AAAA ,"), specBody, specTime); !errors.Is(err, webhook.ErrMismatch) {
		t.Errorf("the zero key verified: %v", err)
	}
}

func TestVerifySignatureAge(t *testing.T) {
	t.Parallel()
	keys := mustParse(t, specSecret)
	tests := []struct {
		name string
		at   time.Time // when it is signed; it is verified at specTime
		want error
	}{
		{"now", specTime, nil},
		{"five minutes ago", specTime.Add(-5 * time.Minute), nil},
		{"five minutes and a second ago", specTime.Add(-5*time.Minute - time.Second), webhook.ErrStale},
		{"in five minutes", specTime.Add(5 * time.Minute), nil},
		{"in five minutes and a second", specTime.Add(5*time.Minute + time.Second), webhook.ErrStale},
		{"at the epoch", time.Unix(0, 0), webhook.ErrStale},
		{"before the epoch", time.Unix(-1, 0), webhook.ErrStale},
		{"at the first second of int64", time.Unix(-1<<63, 0), webhook.ErrStale},
		{"at the last second of int64", time.Unix(1<<63-1, 0), webhook.ErrStale},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			timestamp := strconv.FormatInt(tt.at.Unix(), 10)
			h := header(specID, timestamp, webhook.Sign(keys, specID, tt.at, specBody))
			if err := webhook.Verify(keys, h, specBody, specTime); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name              string
		signing, verified []string
		want              error
	}{
		{"before", []string{specSecret}, []string{specSecret}, nil},
		{"both keys sign, receiver has the old", []string{otherSecret, specSecret}, []string{specSecret}, nil},
		{"both keys sign, receiver has the new", []string{otherSecret, specSecret}, []string{otherSecret}, nil},
		{"new key signs, receiver has both", []string{otherSecret}, []string{specSecret, otherSecret}, nil},
		{"from HMAC to ed25519", []string{specSecret, specPrivate}, []string{specPublic}, nil},
		{"new key signs, receiver has the old", []string{otherSecret}, []string{specSecret}, webhook.ErrMismatch},
	}
	for _, tt := range steps {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			signature := webhook.Sign(mustParse(t, tt.signing...), specID, specTime, specBody)
			h := header(specID, "1614265330", signature)
			if err := webhook.Verify(mustParse(t, tt.verified...), h, specBody, specTime); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

// A part of a captured body must not pass as the timestamp of a longer ID.
func TestTimestampIsSigned(t *testing.T) {
	t.Parallel()
	keys := mustParse(t, specSecret)
	captured := webhook.Sign(keys, "a", time.Unix(1, 0), []byte("1614265330.body"))
	replayed := header("a.1", "1614265330", captured)
	if err := webhook.Verify(keys, replayed, []byte("body"), specTime); !errors.Is(err, webhook.ErrMalformed) {
		t.Errorf("got %v, want %v", err, webhook.ErrMalformed)
	}
}

func TestMatchesStandardWebhooksLibrary(t *testing.T) {
	t.Parallel()
	library, err := standardwebhooks.NewWebhook(specSecret)
	if err != nil {
		t.Fatal(err)
	}
	keys := mustParse(t, specSecret)
	// The library reads the real clock.
	at := time.Now()
	timestamp := strconv.FormatInt(at.Unix(), 10)
	for _, body := range []string{"", "{}", "response=example+response", "\x00\xff\n.", strings.Repeat("x", 1<<20)} {
		ours := webhook.Sign(append(mustParse(t, otherSecret, specPrivate), keys...), specID, at, []byte(body))
		if err := library.Verify([]byte(body), header(specID, timestamp, ours)); err != nil {
			t.Errorf("the library does not verify what we signed: %v", err)
		}
		theirs, err := library.Sign(specID, at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if err := webhook.Verify(keys, header(specID, timestamp, theirs), []byte(body), at); err != nil {
			t.Errorf("we do not verify what the library signed: %v", err)
		}
	}
}

// RFC 8032, section 7.1, tests 1 to 3: secret seeds and their public keys.
func TestEd25519VectorsOfRFC8032(t *testing.T) {
	t.Parallel()
	vectors := []struct{ seed, public string }{
		{"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"},
		{"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"},
		{"c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7", "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"},
	}
	for _, v := range vectors {
		seed, _ := hex.DecodeString(v.seed)
		public, _ := hex.DecodeString(v.public)
		private := mustParse(t, "whsk_"+base64.StdEncoding.EncodeToString(append(seed, public...)))
		signed := webhook.Sign(private, specID, specTime, specBody)
		signature, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(signed, "v1a,"))
		if err != nil {
			t.Fatal(err)
		}
		content := specID + ".1614265330." + string(specBody)
		if !ed25519.Verify(public, []byte(content), signature) {
			t.Errorf("crypto/ed25519 does not verify %s under %s", signed, v.public)
		}
		receiver := mustParse(t, "whpk_"+base64.StdEncoding.EncodeToString(public))
		if err := webhook.Verify(receiver, header(specID, "1614265330", signed), specBody, specTime); err != nil {
			t.Errorf("under %s: %v", v.public, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(specID, "1614265330", specV1, specBody)
	f.Add(specID, "1614265330", specV1+" "+specV1a, specBody)
	f.Add("a.1", "1614265330", specV1a, []byte("1."))
	f.Add("", "-1", "v1,,v1a,= ,", []byte(nil))
	f.Add("id", "9223372036854775807", "v1 v1a, v1,AAAA", []byte("\xff"))
	keys := mustParse(f, specSecret, specPrivate, specPublic)
	f.Fuzz(func(t *testing.T, id, timestamp, signature string, body []byte) {
		// Only a signature that we made ourselves may pass.
		if err := webhook.Verify(keys, header(id, timestamp, signature), body, specTime); err == nil {
			seconds, err := strconv.ParseInt(timestamp, 10, 64)
			if err != nil {
				t.Fatalf("the timestamp %q passed", timestamp)
			}
			genuine := strings.Fields(webhook.Sign(keys, id, time.Unix(seconds, 0), body))
			for _, s := range strings.Fields(signature) {
				if s == genuine[0] || s == genuine[1] {
					return
				}
			}
			t.Fatalf("the signature %q passed", signature)
		}
		// Everything that we sign passes, unless the ID is empty or ambiguous.
		ours := header(id, "1614265330", webhook.Sign(keys, id, specTime, body))
		if err := webhook.Verify(keys, ours, body, specTime); err != nil && id != "" && !strings.Contains(id, ".") {
			t.Fatalf("our own signature of %q: %v", id, err)
		}
	})
}
