// Package hop ends loops of callbacks. A callback may reach a gateway and become a task
// that has a callback itself. So each callback carries its number in a row of callbacks
// in callback-hop.
//
// Clients can send that header too, and must not be able to suppress the operator's
// callback with it. So for the operator's callback the number counts only with the MAC of
// a gateway of the same store.
package hop

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Headers of a callback, in canonical form.
const (
	Header    = "Callback-Hop"
	MACHeader = "Callback-Hop-Mac"
)

// Max is the most callbacks that can follow from each other.
const Max = 8

// Next returns the header field of a callback whose request was made by the given number
// of callbacks. It is stored with the task. It returns false if the callback is the first.
func Next(hops int) (field [2]string, ok bool) {
	if hops == 0 {
		return field, false
	}
	return [2]string{Header, strconv.Itoa(hops + 1)}, true
}

// Claimed returns the number that a request claims: 0 if it has none, and more than
// [Max] if it is not a number.
func Claimed(h http.Header) int {
	hops := 0
	for _, line := range h[Header] {
		n, err := strconv.ParseUint(strings.TrimSpace(line), 10, 16)
		if err != nil {
			return Max + 1
		}
		hops = max(hops, int(n))
	}
	return hops
}

// Proven returns [Claimed] if a gateway that knows the secret has sent the request to this
// host and URI. Otherwise it returns 0.
func Proven(h http.Header, host, uri string, secret []byte) int {
	hops := Claimed(h)
	want := mac(secret, hops, host, uri)
	proves := func(mac string) bool { return hmac.Equal([]byte(mac), []byte(want)) }
	if !slices.ContainsFunc(h[MACHeader], proves) {
		return 0
	}
	return hops
}

// Set sets the headers of a callback to u. Without a stored number, the callback is the
// first. Without a secret, the number is not proven.
func Set(h http.Header, u *url.URL, secret []byte) {
	n, err := strconv.Atoi(h.Get(Header))
	if err != nil {
		n = 1
		h.Set(Header, "1")
	}
	if secret != nil {
		h.Set(MACHeader, mac(secret, n, u.Host, u.RequestURI()))
	}
}

// mac returns the MAC of a number at a URL. It does not cover the scheme, because a proxy
// in front of the gateway may terminate TLS.
func mac(secret []byte, hops int, host, uri string) string {
	sum := hmac.New(sha256.New, secret)
	host = strings.ToLower(host)
	for _, port := range []string{":80", ":443"} {
		host = strings.TrimSuffix(host, port)
	}
	for _, part := range []string{"callback-hop", strconv.Itoa(hops), host, uri} {
		sum.Write([]byte(part))
		sum.Write([]byte{0})
	}
	return base64.RawURLEncoding.EncodeToString(sum.Sum(nil))
}
