package webhook_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Keys and signatures from the specification's own examples and the tests of its
// reference implementations.
const (
	specSecret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	specPrivate = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
	specSeed    = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbc="
	specPublic  = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
)

func base64Of(n int) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{'k'}, n))
}

func mustParse(t testing.TB, words ...string) []webhook.Key {
	t.Helper()
	var keys []webhook.Key
	for _, w := range words {
		key, err := webhook.ParseVerifyKey(w)
		if err != nil {
			t.Fatalf("ParseVerifyKey: %v", err)
		}
		keys = append(keys, key)
	}
	return keys
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	halves := append(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)...)
	tests := []struct {
		name, key string
		err       string // what the error must say; empty for none
	}{
		{"secret of the specification", specSecret, ""},
		{"shortest secret", "whsec_" + base64Of(24), ""},
		{"longest secret", "whsec_" + base64Of(64), ""},
		{"secret too short", "whsec_" + base64Of(23), "24 to 64 bytes, this one 23"},
		{"secret too long", "whsec_" + base64Of(65), "24 to 64 bytes, this one 65"},
		{"private key", specPrivate, ""},
		{"seed", specSeed, ""},
		{"private key of another length", "whsk_" + base64Of(48), "64 bytes, or 32"},
		{"private key with another public half", "whsk_" + base64.StdEncoding.EncodeToString(halves), "do not belong together"},
		{"public key", specPublic, "cannot sign"},
		{"unknown prefix", "whxx_" + base64Of(32), "starts with whsec_ or whsk_"},
		{"prefix in capitals", "WHSEC_" + base64Of(32), "starts with whsec_ or whsk_"},
		{"no prefix", base64Of(32), "starts with whsec_ or whsk_"},
		{"empty key", "", "starts with whsec_ or whsk_"},
		{"only a prefix", "whsec_", "this one 0"},
		{"base64 for URLs", "whsec_" + strings.Repeat("-_", 16), "not base64"},
		{"base64 without padding", "whsec_" + strings.TrimRight(base64Of(25), "="), "not base64"},
		{"base64 with stray bits", "whsec_" + strings.Repeat("A", 34) + "B=", "not base64"},
		{"line break inside", specSecret[:20] + "\n" + specSecret[20:], "not base64"},
		{"line break at the end", specSecret + "\n", "not base64"},
		{"space at the end", specSecret + " ", "not base64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := webhook.ParseKey(tt.key)
			switch {
			case tt.err == "" && err != nil:
				t.Fatalf("got error %q", err)
			case tt.err != "" && err == nil:
				t.Fatalf("got no error, want %q", tt.err)
			case tt.err != "" && !strings.Contains(err.Error(), tt.err):
				t.Fatalf("got error %q, want %q in it", err, tt.err)
			}
			assertNoLeak(t, tt.key, fmt.Sprint(err))
		})
	}
}

func TestParseVerifyKey(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, key string
		ok        bool
	}{
		{"public key", specPublic, true},
		{"public key of another length", "whpk_" + base64Of(31), false},
		{"secret", specSecret, true},
		{"private key", specPrivate, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := webhook.ParseVerifyKey(tt.key)
			if (err == nil) != tt.ok {
				t.Fatalf("got error %v", err)
			}
		})
	}
}

func TestKeysAreNotPrinted(t *testing.T) {
	t.Parallel()
	type holder struct {
		Exported   webhook.Key
		unexported webhook.Key // fmt cannot call its methods
	}
	for _, word := range []string{specSecret, specPrivate, specPublic} {
		key := mustParse(t, word)[0]
		held := holder{key, key}
		var printed strings.Builder
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%b", "%U", "%p", "%t"} {
			fmt.Fprintf(&printed, verb, key)
			fmt.Fprintf(&printed, verb, &key)
			fmt.Fprintf(&printed, verb, held)
			fmt.Fprintf(&printed, verb, &held)
			fmt.Fprintf(&printed, verb, []webhook.Key{key})
		}
		encoded, err := json.Marshal(map[string]any{"key": key, "pointer": &key, "held": held})
		if err != nil {
			t.Fatal(err)
		}
		printed.Write(encoded)
		slog.New(slog.NewTextHandler(&printed, nil)).Info("x", "key", key, "held", held)
		slog.New(slog.NewJSONHandler(&printed, nil)).Info("x", "key", key, "held", held)
		printed.WriteString(key.GoString())
		assertNoLeak(t, word, printed.String())

		prefix, _, _ := strings.Cut(word, "_")
		if got, want := key.String(), prefix+"_[redacted]"; got != want {
			t.Errorf("String() = %q, want %q", got, want)
		}
	}
	if got := fmt.Sprint(webhook.Key{}); got != "no key" {
		t.Errorf("the zero key prints %q", got)
	}
}

// assertNoLeak fails if text contains a run of the key's bytes in any of the forms that
// %v, %x and %d write.
func assertNoLeak(t *testing.T, key, text string) {
	t.Helper()
	_, encoded, found := strings.Cut(key, "_")
	if !found {
		encoded = key
	}
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(raw) < 8 {
		if len(encoded) >= 8 && strings.Contains(text, encoded[:8]) {
			t.Errorf("%q shows the key", text)
		}
		return
	}
	part := raw[:4]
	decimal := strings.Trim(fmt.Sprint(part), "[]")
	for _, form := range []string{
		encoded[:6], string(part), decimal, fmt.Sprintf("%x", part), fmt.Sprintf("%X", part),
		strings.ReplaceAll(decimal, " ", ", "), strings.ReplaceAll(decimal, " ", ","),
	} {
		if strings.Contains(text, form) {
			t.Errorf("%q shows the key as %q", text, form)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	for _, seed := range []string{
		specSecret, specPrivate, specSeed, specPublic, "", "whsec_", "whsk_AAAA", "whsec_\n",
		"whsec_" + base64Of(23), "whpk_" + base64Of(64), "whsk_" + base64Of(64), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS=",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, err := webhook.ParseVerifyKey(s)
		_, signErr := webhook.ParseKey(s)
		if err != nil {
			if signErr == nil {
				t.Fatal("a key that cannot verify can sign")
			}
			if _, encoded, _ := strings.Cut(s, "_"); len(encoded) >= 16 && strings.Contains(err.Error(), encoded) {
				t.Fatalf("the error %q holds the key", err)
			}
			return
		}
		// A key has only one spelling: encoding the parsed key returns the same text.
		prefix, encoded, _ := strings.Cut(s, "_")
		raw, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil || prefix+"_"+base64.StdEncoding.EncodeToString(raw) != s {
			t.Fatalf("%q was read, but is not how a key is written", s)
		}
		if canSign := webhook.Sign([]webhook.Key{key}, "id", now, nil) != ""; canSign != (signErr == nil) {
			t.Fatalf("ParseKey says %v, but signing: %v", signErr, canSign)
		}
		if prefix == "whsk" && len(raw) == ed25519.PrivateKeySize &&
			!ed25519.NewKeyFromSeed(raw[:32]).Equal(ed25519.PrivateKey(raw)) {
			t.Fatal("a private key with a foreign public half was read")
		}
	})
}
