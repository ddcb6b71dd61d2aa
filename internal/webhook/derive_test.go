package webhook_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

var derivable = map[string]string{
	"an HMAC secret": "whsec_" + base64.StdEncoding.EncodeToString([]byte("a secret of thirty-two bytes ...")),
	"an ed25519 key": "whsk_" + base64.StdEncoding.EncodeToString([]byte("a seed of exactly 32 bytes, here")),
}

func parseOne(t *testing.T, text string) webhook.Key {
	t.Helper()
	key, err := webhook.ParseVerifyKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestDerivedKeysDifferByReceiver(t *testing.T) {
	t.Parallel()
	for name, text := range derivable {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			secret, now, body := parseOne(t, text), time.Now(), []byte("response=x")
			signed := func(value string) http.Header {
				return http.Header{
					"Webhook-Id":        {"1"},
					"Webhook-Timestamp": {strconv.FormatInt(now.Unix(), 10)},
					"Webhook-Signature": {webhook.Sign([]webhook.Key{secret.Derive(value)}, "1", now, body)},
				}
			}
			alice := parseOne(t, secret.Derive("alice").VerifyText())
			if err := webhook.Verify([]webhook.Key{alice}, signed("alice"), body, now); err != nil {
				t.Errorf("alice cannot verify hers: %v", err)
			}
			for _, other := range []string{"bob", "", "alice "} {
				if err := webhook.Verify([]webhook.Key{alice}, signed(other), body, now); !errors.Is(err, webhook.ErrMismatch) {
					t.Errorf("alice verifies that of %q: %v", other, err)
				}
			}
			if err := webhook.Verify([]webhook.Key{secret}, signed("alice"), body, now); !errors.Is(err, webhook.ErrMismatch) {
				t.Errorf("the secret itself signed: %v", err)
			}
		})
	}
}

// TestDerivedKeysAreStable compares with keys that another implementation of HKDF
// made.
func TestDerivedKeysAreStable(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"an HMAC secret": "whsec_rcCl+1Ut7kPWLmubeTv7CviOLu7/oDAM4Kekln6+GUA=",
		"an ed25519 key": "whpk_B5eAKs/YfShRyNDKM3yHiCuytAlq3q5wxCW36tvpg3k=",
	} {
		if got := parseOne(t, derivable[name]).Derive("alice").VerifyText(); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestLibraryVerifiesDerivedKey(t *testing.T) {
	t.Parallel()
	key, now := parseOne(t, derivable["an HMAC secret"]).Derive("alice"), time.Now()
	hook, err := standardwebhooks.NewWebhook(key.VerifyText())
	if err != nil {
		t.Fatal(err)
	}
	err = hook.Verify([]byte("response=x"), http.Header{
		"Webhook-Id":        {"1"},
		"Webhook-Timestamp": {strconv.FormatInt(now.Unix(), 10)},
		"Webhook-Signature": {webhook.Sign([]webhook.Key{key}, "1", now, []byte("response=x"))},
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPublicKeyCannotBeDerived(t *testing.T) {
	t.Parallel()
	public := parseOne(t, parseOne(t, derivable["an ed25519 key"]).VerifyText())
	if derived := public.Derive("alice"); derived.VerifyText() != "" || !strings.Contains(derived.String(), "no key") {
		t.Errorf("%v", derived)
	}
}
