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

// callbackOf returns what the request is owed, and the host and port that it
// goes to, or nil if it is owed none. One that may have wanted a callback is counted
// then. The error is a *problem.
func (h *Handler) callbackOf(w http.ResponseWriter, r *http.Request) (*task.Callback, string, error) {
	callback, host, reason, err := h.findCallback(w, r)
	if callback == nil && err == nil && reason != "" {
		h.skipped(r, reason)
	}
	return callback, host, err
}

// findCallback is callbackOf with the reason why there is no callback.
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

// maxTraceparent is more than any version of Trace Context has had, in bytes.
const maxTraceparent = 128

// maxFields is how large the values may be, in bytes, that placeholders put into
// the header of a callback. The engine keeps them in the task's record, which
// must fit in a message; most receivers refuse more.
const maxFields = 16 << 10

// sendsHeaders says whether what the operator adds goes to a URL: to the operator's
// own, or where there is none, to the one that the request names. A client that
// names a URL of its own must not get a secret that is meant for the operator's.
func (h *Handler) sendsHeaders(own bool) bool { return own || h.URL == "" }

// callbackHeader returns what the operator adds to a callback, with what the
// request puts in the place of placeholders. The error is a *problem.
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
				fmt.Sprintf("what the request gives the callback's header %s is too long: %d bytes at most", field.Name, maxFields)}
		}
		header = append(header, [2]string{field.Name, value})
	}
	return header, nil
}

// within returns h with the options of the handler further out that has claimed a
// request, where h does not say otherwise. What belongs together stays together: the
// header fields with the URL that they are meant for, and the profile with what it
// changes the defaults of.
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

// newCallback returns what is owed to a request for a path, whose placeholders repl
// has. All that the profile and derive_keys decide is in it: an accepted task keeps
// it, whatever the configuration says later. The error is a *problem.
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

// fieldValue removes the control characters from s: a placeholder may expand to
// what a client sent. Other bytes stay as they are, UTF-8 or not.
func fieldValue(s string) string {
	value := make([]byte, 0, len(s))
	for _, c := range []byte(s) {
		if c >= ' ' && c != 0x7f || c == '\t' {
			value = append(value, c)
		}
	}
	return string(value)
}

// findURL returns the value of the member that names a URL in the request's body,
// "" if there is none. The body is put back byte for byte. The error is a *problem:
// the request must be refused. w is the response to the request, nil if there is
// none.
func (h *Handler) findURL(w http.ResponseWriter, r *http.Request) (string, capture.Reason, error) {
	value, reason, err := capture.Find(r, capture.Options{
		Field: h.Field, Limit: h.MaxRequest, Folder: h.app.spool, Response: w,
	})
	return value, reason, problemOf(err)
}

// hopsReached is the reason for a request that too many callbacks led to.
const hopsReached capture.Reason = "hops"

// skipped counts a request that could have been a task and is none.
func (h *Handler) skipped(r *http.Request, reason capture.Reason) {
	h.app.metrics.taskSkipped(reason)
	if c := h.log.Check(zap.DebugLevel, "request is no task"); c != nil {
		c.Write(zap.String("reason", string(reason)), zap.String("method", r.Method), zap.String("path", r.URL.Path))
	}
}

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

// urlOf returns the URL that the request names, "" if it names none, and why one
// that may have wanted a callback names none. The error is a *problem: the request
// must be refused. w is the response to the request, nil if there is none.
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

// source is what clients know the place of the URL by.
func (h *Handler) source() string {
	if h.FromHeader != "" {
		return h.FromHeader
	}
	return h.Field
}

// headerURL returns the URL in a header. It allocates nothing unless the request
// is refused: every request passes here, and none is read.
func headerURL(values []string, name string) (string, error) {
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	default:
		return "", &problem{http.StatusBadRequest, name + ": the header is there twice, and servers disagree on which one counts"}
	}
}
