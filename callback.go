package callback

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// callbackOf returns the request's callback, with its host and port, or nil if it has
// none. It counts requests that may have meant to name a callback. The error is a
// *problem.
func (h *Handler) callbackOf(w http.ResponseWriter, r *http.Request) (*task.Callback, string, error) {
	callback, host, reason, err := h.findCallback(w, r)
	if callback == nil && err == nil && reason != "" {
		h.skipped(r, reason)
	}
	return callback, host, err
}

// findCallback is callbackOf that also returns the reason why there is no callback.
func (h *Handler) findCallback(w http.ResponseWriter, r *http.Request) (_ *task.Callback, host string, reason capture.Reason, _ error) {
	target, host, trusted := h.URL, h.own, true
	hops, named, err := claimedHops(r), "", error(nil)
	if hops > maxHops {
		reason = hopsReached
	} else if named, reason, err = h.urlOf(w, r); err != nil {
		return nil, "", "", err
	}
	if named != "" {
		u, err := h.app.Delivery.policy.CheckURL(named)
		if err != nil {
			return nil, "", "", &problem{http.StatusBadRequest, fmt.Sprintf("%s: %v", h.source(), err)}
		}
		target, host, trusted = u.String(), safedial.HostPort(u), false
	}
	if target == "" {
		return nil, "", reason, nil
	}
	if trusted {
		if hops = h.app.provenHops(r); hops > maxHops {
			return nil, "", hopsReached, nil
		}
	}
	repl, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	callback, err := h.newCallback(target, trusted, originalPath(r), repl)
	if err != nil {
		return nil, "", "", err
	}
	if parent := r.Header.Get("Traceparent"); len(parent) <= maxTraceparent {
		callback.Traceparent = parent
	}
	if h.sendsHeaders(trusted) {
		callback.Header, err = h.callbackHeader(r)
	}
	addHops(callback, hops)
	return callback, host, "", err
}

// maxTraceparent is longer than a traceparent of any version of Trace Context, in
// bytes.
const maxTraceparent = 128

// maxFields bounds the values, in bytes, that placeholders add to the header of a
// callback. They are part of the task's record, which must fit in a message of the
// engine; most receivers refuse more.
const maxFields = 16 << 10

// sendsHeaders reports whether the operator's headers are sent to a URL: to the
// operator's own or, if there is none, to the one that the request names. Otherwise a
// client could name a URL and receive a secret that is meant for the operator's.
func (h *Handler) sendsHeaders(own bool) bool { return own || h.URL == "" }

// callbackHeader returns the headers that the operator adds to a callback, with
// placeholders expanded from the request. The error is a *problem.
func (h *Handler) callbackHeader(r *http.Request) (header [][2]string, _ error) {
	if len(h.Headers) == 0 {
		return nil, nil
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	size := 0
	for _, field := range h.Headers {
		value := fieldValue(repl.ReplaceAll(field.Value, ""))
		if size += len(value); size > maxFields {
			return nil, &problem{http.StatusBadRequest,
				fmt.Sprintf("the request makes the callback's header %s too large; the limit is %d bytes", field.Name, maxFields)}
		}
		header = append(header, [2]string{field.Name, value})
	}
	return header, nil
}

// within returns h, with unset options taken from the outer handler that has claimed
// the request. Two groups are taken only as a whole: the headers with the URL that they
// are meant for, and the profile with the options whose defaults it changes.
func (h *Handler) within(outer *Handler) (*Handler, error) {
	merged, from := *h.written, outer.written
	if merged.URL == "" {
		merged.URL = from.URL
		if merged.Headers == nil {
			merged.Headers = from.Headers
		}
	}
	if merged.Profile == "" || merged.Profile == from.Profile {
		merged.Profile = from.Profile
		if merged.Field == "" && merged.FromHeader == "" && !merged.FromNone {
			merged.Field, merged.FromHeader, merged.FromNone = from.Field, from.FromHeader, from.FromNone
		}
		setDefault(&merged.Format, from.Format)
		setDefault(&merged.TaskHeader, from.TaskHeader)
		setDefault(&merged.StatusHeader, from.StatusHeader)
	}
	setDefault(&merged.Timeout, from.Timeout)
	setDefault(&merged.MaxRequest, from.MaxRequest)
	setDefault(&merged.MaxResult, from.MaxResult)
	if err := merged.applyDefaults(); err != nil {
		return nil, err
	}
	return &merged, merged.Validate()
}

// maxKeyFor bounds the value that keys are derived from, in bytes: it is stored with
// the task, and a client may choose it.
const maxKeyFor = 1 << 10

// newCallback returns the callback of a request for a path; repl has the request's
// placeholders. It includes the settings of the profile and of derive_keys, so that a
// reload does not change accepted tasks. The error is a *problem.
func (h *Handler) newCallback(target string, trusted bool, path string, repl *caddy.Replacer) (*task.Callback, error) {
	keyFor := h.app.Delivery.keyFor(repl)
	if keyFor != nil && len(*keyFor) > maxKeyFor {
		return nil, &problem{http.StatusBadRequest,
			fmt.Sprintf("what the request gives derive_keys is too long: %d bytes at most", maxKeyFor)}
	}
	return &task.Callback{
		URL: target, Trusted: trusted, Format: h.Format, Profile: h.Profile,
		TaskHeader: h.TaskHeader, StatusHeader: h.StatusHeader, MaxResult: h.MaxResult,
		Function: profile.Of(h.Profile).Function(path), KeyFor: keyFor,
	}, nil
}

// fieldValue removes the control characters from s, because placeholders may expand to
// what a client sent. It keeps all other bytes, even if they are not UTF-8.
func fieldValue(s string) string {
	value := make([]byte, 0, len(s))
	for _, c := range []byte(s) {
		if c >= ' ' && c != 0x7f || c == '\t' {
			value = append(value, c)
		}
	}
	return string(value)
}

// findURL returns the URL that the request's body names, or "". It restores the body
// byte for byte. The error is a *problem. w is the response to the request, or nil.
func (h *Handler) findURL(w http.ResponseWriter, r *http.Request) (string, capture.Reason, error) {
	value, reason, err := capture.Find(r, capture.Options{
		Field: h.Field, Limit: h.MaxRequest, Folder: h.app.spool, Response: w,
	})
	return value, reason, problemOf(err)
}

// hopsReached is the reason for a request that too many callbacks led to.
const hopsReached capture.Reason = "hops"

// skipped counts a request that could have been a task and is not.
func (h *Handler) skipped(r *http.Request, reason capture.Reason) {
	h.app.metrics.taskSkipped(reason)
	if c := h.log.Check(zap.DebugLevel, "request is no task"); c != nil {
		c.Write(zap.String("reason", string(reason)), zap.String("method", r.Method), zap.String("path", r.URL.Path))
	}
}

// A callback may reach a gateway and become a task that has a callback itself. To end
// such loops, each callback carries the number of callbacks before it in callback-hop.
// Clients can send that header too, and must not be able to suppress the operator's
// callback with it. So for the operator's callback the number counts only with the MAC
// of a gateway of the same store.

// Headers of a callback that end loops, in canonical form.
const (
	hopHeader    = "Callback-Hop"
	hopMACHeader = "Callback-Hop-Mac"
)

// maxHops is the most callbacks that can follow from each other.
const maxHops = 8

// addHops stores the number of callbacks that led to a task's request in its callback.
func addHops(callback *task.Callback, hops int) {
	if hops > 0 {
		callback.Header = append(callback.Header, [2]string{hopHeader, strconv.Itoa(hops + 1)})
	}
}

// setHop sets the hop headers of a callback. Without a stored number it is the first.
func (a *App) setHop(ctx context.Context, header http.Header, u *url.URL) {
	hop, err := strconv.Atoi(header.Get(hopHeader))
	if err != nil {
		hop = 1
		header.Set(hopHeader, "1")
	}
	if secret, err := a.secret(ctx); err == nil { // unproven without a secret
		header.Set(hopMACHeader, hopMAC(secret, hop, u.Host, u.RequestURI()))
	}
}

// claimedHops returns the number in callback-hop: 0 if the header is missing, and more
// than maxHops if it is not a number.
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

// provenHops returns claimedHops if a gateway of this store has sent the request, and
// to this URL. Otherwise it returns 0.
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

// hopMAC returns the MAC of a number of hops at a URL. It does not cover the scheme,
// because a proxy in front of the gateway may terminate TLS.
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

// urlOf returns the URL that the request names, or "". It also returns the reason if
// the request may have meant to name one. The error is a *problem. w is the response to
// the request, or nil.
func (h *Handler) urlOf(w http.ResponseWriter, r *http.Request) (string, capture.Reason, error) {
	switch {
	case h.FromNone:
		return "", "", nil
	case h.fromKey != "":
		named, err := headerURL(r.Header[h.fromKey], h.FromHeader)
		return named, "", err
	}
	return h.findURL(w, r)
}

// source returns the name of the field or header that has the URL.
func (h *Handler) source() string {
	if h.FromHeader != "" {
		return h.FromHeader
	}
	return h.Field
}

// headerURL returns the URL in a header. Every request passes here, so it does not
// allocate unless it refuses the request.
func headerURL(values []string, name string) (string, error) {
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	default:
		return "", &problem{http.StatusBadRequest, name + ": the header occurs twice; send it once"}
	}
}
