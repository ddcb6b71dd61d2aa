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

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

const (
	hmacSecret  = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	otherSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
)

// verified checks a callback with the specification's own library, as a receiver does.
func verified(secret string, got gatewaytest.Callback) error {
	hook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	return hook.Verify([]byte(got.Body), got.Header)
}

func TestEveryKeySigns(t *testing.T) {
	t.Parallel()
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	private := ed25519.NewKeyFromSeed(seed)
	public := "whpk_" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, gatewaytest.Delivering("secret {env.KEY} "+otherSecret+" whsk_"+base64.StdEncoding.EncodeToString(private)), gatewaytest.ExampleSite(t))
	g.Env = []string{"KEY=" + hmacSecret}
	g.Start()
	id := g.Task(rcv.URL)
	got := rcv.Next(t)

	if got.Header.Get("webhook-id") != id {
		t.Errorf("webhook-id is %q, the task %s", got.Header.Get("webhook-id"), id)
	}
	signatures := strings.Fields(got.Header.Get("webhook-signature"))
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
	if err := webhook.Verify([]webhook.Key{key}, got.Header, []byte(got.Body), time.Now()); err != nil {
		t.Errorf("ed25519: %v", err)
	}
	signed := fmt.Sprintf("%s.%s.%s", id, got.Header.Get("webhook-timestamp"), got.Body)
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(signatures[2], "v1a,"))
	if err != nil || !ed25519.Verify(private.Public().(ed25519.PublicKey), []byte(signed), raw) {
		t.Errorf("ed25519 by the standard library: %v", err)
	}
	if err := verified("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", got); err == nil {
		t.Error("a key that signed nothing verifies")
	}
	if got.Body += "x"; verified(hmacSecret, got) == nil {
		t.Error("a changed body verifies")
	}
}

func TestEachAttemptIsSignedAnew(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("callback-attempt") == "1" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+hmacSecret, "retry 1100ms"), gatewaytest.ExampleSite(t))
	g.Task(rcv.URL)
	first, second := rcv.Next(t), rcv.Next(t)
	for _, got := range []gatewaytest.Callback{first, second} {
		if err := verified(hmacSecret, got); err != nil {
			t.Error(err)
		}
	}
	if a, b := first.Header.Get("webhook-id"), second.Header.Get("webhook-id"); a != b || a != first.TaskID() {
		t.Errorf("the IDs are %q and %q", a, b)
	}
	for _, name := range []string{"webhook-timestamp", "webhook-signature"} {
		if a, b := first.Header.Get(name), second.Header.Get(name); a == b {
			t.Errorf("%s is %q both times", name, a)
		}
	}
}

func TestSentBodyIsSigned(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.WriteString(w, "\x00\xff="+r.URL.Path)
	})
	for _, format := range []string{"form", "json", "raw", "cloudevents"} {
		g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+hmacSecret),
			fmt.Sprintf("callback {\nformat %s\n}\nreverse_proxy %s", format, app))
		g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
		if err := verified(hmacSecret, rcv.Next(t)); err != nil {
			t.Errorf("%s: %v", format, err)
		}
	}
}

func TestReloadRotatesKey(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	site := gatewaytest.ExampleSite(t)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), site)
	for _, test := range []struct {
		lines []string
		by    []string
	}{
		{nil, nil},
		{[]string{"secret " + hmacSecret}, []string{hmacSecret}},
		{[]string{"secret " + hmacSecret + " " + otherSecret}, []string{hmacSecret, otherSecret}},
		{[]string{"secret " + otherSecret}, []string{otherSecret}},
	} {
		g.Configure(gatewaytest.Delivering(test.lines...), site)
		if err := g.Reload(); err != nil {
			t.Fatal(err)
		}
		g.Task(rcv.URL)
		got := rcv.Next(t)
		if n := len(strings.Fields(got.Header.Get("webhook-signature"))); n != len(test.by) {
			t.Errorf("%d signatures with %d keys", n, len(test.by))
		}
		if _, ok := got.Header["Webhook-Id"]; ok && len(test.by) == 0 {
			t.Error("an unsigned callback has a webhook-id")
		}
		for _, secret := range test.by {
			if err := verified(secret, got); err != nil {
				t.Error(err)
			}
		}
	}
}

// derivedKey returns the output of `caddy callback key`.
func derivedKey(t *testing.T, value string, args ...string) []string {
	t.Helper()
	c := runCaddy(t, t.TempDir(), append([]string{"callback", "key", value}, args...)...)
	c.wantCode(t, 0)
	return strings.Fields(c.stdout)
}

func TestReceiversVerifyWithDerivedKeys(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	options := func(secrets string) string {
		return gatewaytest.Delivering("secret "+secrets, "derive_keys {header.x-customer}", "retry 1100ms")
	}
	g := gatewaytest.Start(t, options(hmacSecret), gatewaytest.ExampleSite(t))
	keys := make(map[string]string)
	for _, customer := range []string{"alice", "bob", "\xffü {env.HOME} \"", ""} {
		keys[customer] = derivedKey(t, customer, "--secret", hmacSecret)[0]
	}
	for customer := range keys {
		g.Task(rcv.URL, "x-customer", customer)
		got := rcv.Next(t)
		for other, key := range keys {
			if err := verified(key, got); (err == nil) != (other == customer) {
				t.Errorf("the callback of %q, with the key of %q: %v", customer, other, err)
			}
		}
		if verified(hmacSecret, got) == nil {
			t.Errorf("the callback of %q verifies with the secret", customer)
		}
	}

	resp, body := g.Post("/generate", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if err := verified(keys[""], rcv.Next(t)); err != nil {
		t.Errorf("without the header: %v", err)
	}
	resp, body = g.Do(http.MethodPost, "/generate", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL),
		"Content-Type", "application/json", "x-customer", strings.Repeat("x", 1025))
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "the value of derive_keys for this request is too long") {
		t.Errorf("a long value: %d %s", resp.StatusCode, body)
	}
}

func TestDerivedKeysRotateWithTheSecret(t *testing.T) {
	t.Parallel()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	signing := "whsk_" + base64.StdEncoding.EncodeToString(private)
	failing := make(chan struct{})
	rcv := gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-failing:
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	g := gatewaytest.Start(t, gatewaytest.Delivering("secret "+hmacSecret, "derive_keys {header.x-customer}", gatewaytest.ManyTimes),
		gatewaytest.ExampleSite(t))
	g.Task(rcv.URL, "x-customer", "alice")
	before := rcv.Next(t)
	old := derivedKey(t, "alice", "--secret", hmacSecret)[0]
	if err := verified(old, before); err != nil {
		t.Error(err)
	}

	// The stored value counts, even if derive_keys differs when the callback is sent.
	g.Edit("secret "+hmacSecret, "secret "+otherSecret+" "+signing)
	g.Edit("{header.x-customer}", "{header.x-other}")
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	keys := derivedKey(t, "alice", "--config", g.File)
	if len(keys) != 2 || !strings.HasPrefix(keys[0], "whsec_") || !strings.HasPrefix(keys[1], "whpk_") {
		t.Fatalf("the keys are %q", keys)
	}
	close(failing)
	gatewaytest.Eventually(t, "the callback is signed with keys derived from the new secrets", func() error {
		got := rcv.Next(t)
		if err := verified(keys[0], got); err != nil {
			return err
		}
		public, err := webhook.ParseVerifyKey(keys[1])
		if err != nil {
			return err
		}
		if verified(old, got) == nil {
			t.Error("the old key verifies")
		}
		return webhook.Verify([]webhook.Key{public}, got.Header, []byte(got.Body), time.Now())
	})
}

func TestKeyCommandErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no value":   {nil, "expected one value, got 0"},
		"two values": {[]string{"a", "b"}, "expected one value, got 2"},
		"a public key": {[]string{"a", "--secret", "whpk_AAAA"},
			"--secret: a whpk_ key is public"},
		"no configuration": {[]string{"a", "--config", "missing"}, "--config: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := runCaddy(t, t.TempDir(), append([]string{"callback", "key"}, test.args...)...)
			c.wantCode(t, 2)
			if !strings.Contains(c.stderr, test.want) || c.stdout != "" {
				t.Errorf("it prints %q and %q", c.stdout, c.stderr)
			}
		})
	}
}
