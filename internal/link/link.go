// Package link signs the links under which receivers fetch results that are too large to
// be posted. A link names a task and the time at which it expires. Its signature is all
// that a receiver needs:
//
//	https://example.com/tasks/<id>/result?expires=<Unix time>&signature=<MAC>
package link

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Errors of [Verify].
var (
	ErrForged  = errors.New("the signature is not valid")
	ErrExpired = errors.New("the link has expired")
)

// The parameters of a link.
const (
	expiresParam   = "expires"
	signatureParam = "signature"
)

// New returns the link to the result of a task below base, the URL of a task_status
// handler. Gateways with the same secret accept it until it expires.
func New(secret []byte, base, id string, expires time.Time) string {
	until := strconv.FormatInt(expires.Unix(), 10)
	query := url.Values{expiresParam: {until}, signatureParam: {sign(secret, id, until)}}
	return strings.TrimSuffix(base, "/") + "/" + id + "/result?" + query.Encode()
}

// Signed reports whether the query is that of a link, valid or not.
func Signed(query url.Values) bool { return query.Has(signatureParam) }

// Verify checks the query of a link to a task's result. It returns ErrForged or
// ErrExpired.
func Verify(secret []byte, id string, query url.Values, now time.Time) error {
	until := query.Get(expiresParam)
	if !hmac.Equal([]byte(query.Get(signatureParam)), []byte(sign(secret, id, until))) {
		return ErrForged
	}
	expires, err := strconv.ParseInt(until, 10, 64)
	if err != nil || now.Unix() >= expires {
		return ErrExpired
	}
	return nil
}

// CheckBase checks the URL of a task_status handler.
func CheckBase(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.ContainsAny(raw, "?#") {
		return fmt.Errorf("%q is not a URL such as https://example.com/tasks", raw)
	}
	return nil
}

// maxHost bounds the host of a request that is stored for a link, in bytes. It is longer
// than any host name with a port.
const maxHost = 300

// Origin returns the URL of a host without a path, or "" if the host is not valid. Check
// it: the client chooses the host, unless Caddy's site names it.
func Origin(scheme, host string) string {
	u, err := url.Parse(scheme + "://" + host)
	if err != nil || host == "" || len(host) > maxHost || u.Host != host {
		return ""
	}
	return u.String()
}

// sign returns the MAC of a link. The first word separates it from other uses of the
// secret.
func sign(secret []byte, id, until string) string {
	mac := hmac.New(sha256.New, secret)
	for _, part := range []string{"result-link", id, until} {
		mac.Write([]byte(part))
		mac.Write([]byte{0})
	}
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
