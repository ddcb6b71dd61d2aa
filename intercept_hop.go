package callback

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A callback may reach a gateway and become a task there, which has a callback of
// its own. So that this ends, each callback says how many came before it, in
// callback-hop. A client can send that header too. The operator's callback must
// not be suppressed by it, so there the number counts only with the MAC of a
// gateway of the same store.

// The headers of a callback that end loops, in canonical form.
const (
	hopHeader    = "Callback-Hop"
	hopMACHeader = "Callback-Hop-Mac"
)

// maxHops is how many callbacks can follow from each other.
const maxHops = 8

// addHops notes in a task's callback how many callbacks led to its request.
func addHops(callback *task.Callback, hops int) {
	if hops > 0 {
		callback.Header = append(callback.Header, [2]string{hopHeader, strconv.Itoa(hops + 1)})
	}
}

// setHop marks a callback: as the first of its kind, unless its task says otherwise.
func (a *App) setHop(ctx context.Context, header http.Header, u *url.URL) {
	hop, err := strconv.Atoi(header.Get(hopHeader))
	if err != nil {
		hop = 1
		header.Set(hopHeader, "1")
	}
	if secret, err := a.secret(ctx); err == nil { // without one it is a client's like any other
		header.Set(hopMACHeader, hopMAC(secret, hop, u.Host, u.RequestURI()))
	}
}

// claimedHops returns the number that a request has in callback-hop: 0 if it has
// none, more than maxHops if it is not a number.
func claimedHops(r *http.Request) int {
	hops := 0
	for _, line := range r.Header[hopHeader] {
		n, err := strconv.ParseUint(strings.TrimSpace(line), 10, 16)
		if err != nil {
			return maxHops + 1
		}
		hops = max(hops, int(n))
	}
	return hops
}

// provenHops is claimedHops if the request is a callback of this store's gateways
// and came to the URL that it was sent to, else 0.
func (a *App) provenHops(r *http.Request) int {
	hops := claimedHops(r)
	if hops == 0 {
		return 0
	}
	secret, err := a.secret(r.Context())
	if err != nil {
		return 0
	}
	want := hopMAC(secret, hops, r.Host, originalURL(r).RequestURI())
	proves := func(mac string) bool { return hmac.Equal([]byte(mac), []byte(want)) }
	if !slices.ContainsFunc(r.Header[hopMACHeader], proves) {
		return 0
	}
	return hops
}

// hopMAC returns the MAC of a number of hops at a URL. The scheme is not part of
// it: a proxy before the gateway may end TLS.
func hopMAC(secret []byte, hops int, host, uri string) string {
	mac := hmac.New(sha256.New, secret)
	host = strings.ToLower(host)
	for _, port := range []string{":80", ":443"} {
		host = strings.TrimSuffix(host, port)
	}
	for _, part := range []string{"callback-hop", strconv.Itoa(hops), host, uri} {
		mac.Write([]byte(part))
		mac.Write([]byte{0})
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
