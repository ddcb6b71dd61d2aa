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
	"hash"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// Key makes and checks the MACs of numbers. Its methods may be called from several
// goroutines at once.
type Key struct{ macs sync.Pool } // of *mac; a new one costs more than its use

// mac computes MACs.
type mac struct {
	hash.Hash
	buffer []byte
}

// NewKey returns the key of a secret that only the gateways of a store know.
func NewKey(secret []byte) *Key {
	return &Key{sync.Pool{New: func() any { return &mac{Hash: hmac.New(sha256.New, secret)} }}}
}

// Proven returns [Claimed] if a gateway that has the key has sent the request to this
// host and URI. Otherwise, and without a key, it returns 0.
func (k *Key) Proven(h http.Header, host, uri string) int {
	hops := Claimed(h)
	if hops == 0 || k == nil {
		return 0
	}
	want := k.mac(hops, host, uri)
	proves := func(mac string) bool { return hmac.Equal([]byte(mac), []byte(want)) }
	if !slices.ContainsFunc(h[MACHeader], proves) {
		return 0
	}
	return hops
}

// Set sets the headers of a callback to u. Without a stored number, the callback is the
// first. Without a key, the number is not proven.
func (k *Key) Set(h http.Header, u *url.URL) {
	n := 1
	values := []string{"1", ""} // the memory of both fields
	if stored := h.Get(Header); stored != "" {
		n, _ = strconv.Atoi(stored) // Next has written it
	} else {
		h[Header] = values[:1:1]
	}
	if k != nil {
		values[1] = k.mac(n, u.Host, u.RequestURI())
		h[MACHeader] = values[1:]
	}
}

// mac returns the MAC of a number at a URL. It does not cover the scheme, because a proxy
// in front of the gateway may terminate TLS.
func (k *Key) mac(hops int, host, uri string) string {
	host = strings.ToLower(host)
	for _, port := range []string{":80", ":443"} {
		host = strings.TrimSuffix(host, port)
	}
	sum := k.macs.Get().(*mac)
	defer k.macs.Put(sum)
	message := sum.buffer[:0]
	for _, part := range []string{"callback-hop", strconv.Itoa(hops), host, uri} {
		message = append(append(message, part...), 0)
	}
	sum.Reset()
	sum.Write(message)
	sum.buffer = sum.Sum(message[:0])
	var text [64]byte // for 32 bytes of SHA-256
	return string(base64.RawURLEncoding.AppendEncode(text[:0], sum.buffer))
}
