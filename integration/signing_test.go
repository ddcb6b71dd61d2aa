package integration

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

const (
	hmacSecret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	otherSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
)

// verified checks a callback as a receiver with the specification's own library
// does.
func verified(secret string, got callback) error {
	hook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	return hook.Verify([]byte(got.body), got.header)
}

func TestEveryKeySignsAndOtherPeoplesLibraryVerifies(t *testing.T) {
	t.Parallel()
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	private := ed25519.NewKeyFromSeed(seed)
	public := "whpk_" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	rcv := newReceiver(t, nil)
	g := newGateway(t, delivering("secret {env.KEY} "+otherSecret+" whsk_"+base64.StdEncoding.EncodeToString(private)), exampleSite(t))
	g.env = []string{"KEY=" + hmacSecret}
	g.start()
	id := g.task(rcv.URL)
	got := rcv.next(t)

	if got.header.Get("webhook-id") != id {
		t.Errorf("webhook-id is %q, the task %s", got.header.Get("webhook-id"), id)
	}
	signatures := strings.Fields(got.header.Get("webhook-signature"))
	if len(signatures) != 3 || !strings.HasPrefix(signatures[0], "v1,") ||
		!strings.HasPrefix(signatures[1], "v1,") || !strings.HasPrefix(signatures[2], "v1a,") {
		t.Errorf("the signatures are %q", signatures)
	}
	for _, secret := range []string{hmacSecret, otherSecret} {
		if err := verified(secret, got); err != nil {
			t.Errorf("%s: %v", secret, err)
		}
	}
	key, err := webhook.ParseVerifyKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if err := webhook.Verify([]webhook.Key{key}, got.header, []byte(got.body), time.Now()); err != nil {
		t.Errorf("ed25519: %v", err)
	}
	signed := fmt.Sprintf("%s.%s.%s", id, got.header.Get("webhook-timestamp"), got.body)
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(signatures[2], "v1a,"))
	if err != nil || !ed25519.Verify(private.Public().(ed25519.PublicKey), []byte(signed), raw) {
		t.Errorf("ed25519 by the standard library: %v", err)
	}
	if err := verified("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", got); err == nil {
		t.Error("a key that signed nothing verifies")
	}
	if got.body += "x"; verified(hmacSecret, got) == nil {
		t.Error("a changed body verifies")
	}
}

func TestEachAttemptIsSignedAnewForTheSameID(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("callback-attempt") == "1" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	g := startGateway(t, delivering("secret "+hmacSecret, "retry 1100ms"), exampleSite(t))
	g.task(rcv.URL)
	first, second := rcv.next(t), rcv.next(t)
	for _, got := range []callback{first, second} {
		if err := verified(hmacSecret, got); err != nil {
			t.Error(err)
		}
	}
	if a, b := first.header.Get("webhook-id"), second.header.Get("webhook-id"); a != b || a != first.id() {
		t.Errorf("the IDs are %q and %q", a, b)
	}
	for _, name := range []string{"webhook-timestamp", "webhook-signature"} {
		if a, b := first.header.Get(name), second.header.Get(name); a == b {
			t.Errorf("%s is %q both times", name, a)
		}
	}
}

func TestWhatIsSignedIsTheBodyAsItIsSent(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, nil)
	app := newApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, "\x00\xff="+r.URL.Path)
	})
	for _, format := range []string{"form", "json", "raw"} {
		g := startGateway(t, delivering("secret "+hmacSecret),
			fmt.Sprintf("callback {\nformat %s\n}\nreverse_proxy %s", format, app))
		g.post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
		if err := verified(hmacSecret, rcv.next(t)); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}
}

func TestAKeyIsRotatedByReload(t *testing.T) {
	t.Parallel()
	rcv := newReceiver(t, nil)
	site := exampleSite(t)
	g := startGateway(t, delivering(), site)
	for _, test := range []struct {
		lines []string
		by    []string
	}{
		{nil, nil},
		{[]string{"secret " + hmacSecret}, []string{hmacSecret}},
		{[]string{"secret " + hmacSecret + " " + otherSecret}, []string{hmacSecret, otherSecret}},
		{[]string{"secret " + otherSecret}, []string{otherSecret}},
	} {
		g.configure(delivering(test.lines...), site)
		if err := g.reload(); err != nil {
			t.Fatal(err)
		}
		g.task(rcv.URL)
		got := rcv.next(t)
		if n := len(strings.Fields(got.header.Get("webhook-signature"))); n != len(test.by) {
			t.Errorf("%d signatures with %d keys", n, len(test.by))
		}
		if _, ok := got.header["Webhook-Id"]; ok && len(test.by) == 0 {
			t.Error("an unsigned callback has a webhook-id")
		}
		for _, secret := range test.by {
			if err := verified(secret, got); err != nil {
				t.Error(err)
			}
		}
	}
}
