package webhook_test

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// A sender signs with all its keys. A receiver verifies with the keys that it has.
func Example() {
	key, err := webhook.ParseKey("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	if err != nil {
		fmt.Println(err)
		return
	}
	keys := []webhook.Key{key}
	id, at, body := "3f0a…", time.Unix(1614265330, 0), []byte("response=example+response")

	h := make(http.Header)
	h.Set(webhook.HeaderID, id)
	h.Set(webhook.HeaderTimestamp, strconv.FormatInt(at.Unix(), 10))
	h.Set(webhook.HeaderSignature, webhook.Sign(keys, id, at, body))

	fmt.Println(keys)
	fmt.Println(webhook.Verify(keys, h, body, at.Add(time.Minute)))
	fmt.Println(webhook.Verify(keys, h, body, at.Add(time.Hour)))
	fmt.Println(webhook.Verify(keys, h, []byte("response=other"), at))
	// Output:
	// [whsec_[redacted]]
	// <nil>
	// the signature is right, its timestamp is more than 5 minutes off
	// no signature matches
}
