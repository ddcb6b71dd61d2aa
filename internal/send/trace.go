package send

import (
	"bytes"
	"context"
	"math"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// trace records an attempt for operators, and tells a quietConn when it is in use. Its
// hooks can run concurrently, and after the attempt: a transport continues to connect.
// It is also the context of the attempt's request, so that the timeout can begin after
// signing without a copy of the request.
type trace struct {
	context.Context // with the timeout of the attempt, once the request is signed

	hooks httptrace.ClientTrace
	used  atomic.Pointer[quietConn]

	mu                   sync.Mutex
	addr                 string // of the receiver; empty until there is a connection
	dns, connect, secure span
	ready, answered      time.Time
}

// span is the time from the first start to the last end: a transport may try several
// addresses.
type span struct{ begin, end time.Time }

func (s *span) started() {
	if s.begin.IsZero() {
		s.begin = time.Now()
	}
}

func (s *span) ended() { s.end = time.Now() }

func (s *span) took() float64 {
	if s.begin.IsZero() || s.end.Before(s.begin) {
		return 0
	}
	return milliseconds(s.end.Sub(s.begin))
}

func milliseconds(d time.Duration) float64 {
	return math.Round(float64(d)/float64(time.Millisecond)*100) / 100
}

// locked runs f with the lock held.
func (t *trace) locked(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
}

// traceKey is the context key of the trace of an attempt.
type traceKey struct{}

// Value implements [context.Context].
func (t *trace) Value(key any) any {
	if key == (traceKey{}) {
		return t
	}
	return t.Context.Value(key)
}

// follow returns a context whose requests are traced.
func (t *trace) follow() context.Context {
	t.hooks = httptrace.ClientTrace{GotConn: t.gotConn, GotFirstResponseByte: t.gotByte, PutIdleConn: t.putConn}
	return httptrace.WithClientTrace(t, &t.hooks)
}

func (t *trace) gotByte() { t.locked(func() { t.answered = time.Now() }) }

func (t *trace) gotConn(info httptrace.GotConnInfo) {
	conn, quiet := info.Conn.(*quietConn)
	var addr string
	if quiet {
		addr = conn.remote
		conn.requests.Add(1)
		t.used.Store(conn)
	} else {
		addr = info.Conn.RemoteAddr().String()
	}
	t.locked(func() { t.ready, t.addr = time.Now(), addr })
}

func (t *trace) putConn(error) {
	if conn := t.used.Swap(nil); conn != nil {
		conn.requests.Add(-1)
	}
}

// connecting returns a context for a new connection, which the trace of the attempt
// measures. Most attempts reuse a connection.
func connecting(ctx context.Context) context.Context {
	t, ok := ctx.Value(traceKey{}).(*trace)
	if !ok {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart:     func(httptrace.DNSStartInfo) { t.locked(t.dns.started) },
		DNSDone:      func(httptrace.DNSDoneInfo) { t.locked(t.dns.ended) },
		ConnectStart: func(string, string) { t.locked(t.connect.started) },
		ConnectDone:  func(string, string, error) { t.locked(t.connect.ended) },
	})
}

// shaking records in the trace of an attempt that a TLS handshake begins, and returns a
// function that records its end.
func shaking(ctx context.Context) (done func()) {
	t, ok := ctx.Value(traceKey{}).(*trace)
	if !ok {
		return func() {}
	}
	t.locked(t.secure.started)
	return func() { t.locked(t.secure.ended) }
}

// record returns the trace of the attempt that began at the given time.
func (t *trace) record(at time.Time) task.Trace {
	t.mu.Lock()
	defer t.mu.Unlock()
	answer := span{t.ready, t.answered}
	return task.Trace{
		At: at, RemoteAddr: t.addr, DNS: t.dns.took(), Connect: t.connect.took(), TLS: t.secure.took(), FirstByte: answer.took(),
	}
}

const (
	// masked replaces a value that may be a secret.
	masked = "[masked]"
	// maxKept bounds the headers that are kept of a request or an answer, and maxValue
	// each value, in bytes. Without them, a receiver could fill the store.
	maxKept  = 2 << 10
	maxValue = 512
	// minSecret is the shortest value, in bytes, that is masked in receivers' answers.
	// Shorter ones occur in any text.
	minSecret = 6
)

// mask hides the secrets of a callback: the values of the operator's headers, which
// contain credentials, the query of the URL, and signatures.
type mask struct {
	names    map[string]bool   // of the headers that the operator has set
	replacer *strings.Replacer // nil if there are no secrets
}

// newMask returns the mask of a task's callback to u. sent is the header of the request.
func newMask(rec *task.Record, u *url.URL, sent http.Header) (m mask) {
	var secrets []string
	if len(rec.Callback.Header) > 0 {
		m.names = make(map[string]bool)
	}
	for _, field := range rec.Callback.Header {
		m.names[http.CanonicalHeaderKey(field[0])] = true
		secrets = append(secrets, field[1])
		if _, credentials, ok := strings.Cut(field[1], " "); ok {
			secrets = append(secrets, credentials) // Bearer …
		}
	}
	for name, values := range sent {
		if isSecret(name) {
			secrets = append(secrets, values...)
		}
	}
	if u != nil && u.RawQuery != "" {
		secrets = append(secrets, u.RawQuery)
		for _, values := range u.Query() {
			secrets = append(secrets, values...)
		}
	}
	if password, ok := passwordOf(u); ok {
		secrets = append(secrets, password)
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // the longest match is replaced
	var pairs []string
	for _, secret := range slices.Compact(secrets) {
		if len(secret) >= minSecret {
			pairs = append(pairs, secret, masked)
		}
	}
	if len(pairs) > 0 {
		m.replacer = strings.NewReplacer(pairs...)
	}
	return m
}

func passwordOf(u *url.URL) (string, bool) {
	if u == nil {
		return "", false
	}
	return u.User.Password()
}

// secretWords occur in the names of headers that hold credentials or a signature.
var secretWords = [][]byte{
	[]byte("authorization"), []byte("authenticat"), []byte("cookie"), []byte("signature"), []byte("token"), []byte("secret"),
	[]byte("api-key"), []byte("apikey"), []byte("password"),
}

// isSecret reports whether a header with this name holds credentials or a signature.
func isSecret(name string) bool {
	var buffer [64]byte // names of this length need no allocation
	lower := buffer[:0]
	for _, c := range []byte(name) {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower = append(lower, c)
	}
	for _, word := range secretWords {
		if bytes.Contains(lower, word) {
			return true
		}
	}
	return false
}

// text masks secrets in what a receiver sent.
func (m *mask) text(s string) string {
	if m.replacer == nil {
		return s
	}
	return m.replacer.Replace(s)
}

// headers returns the headers to keep: sorted by name, with secrets masked, at most
// maxKept bytes.
func (m *mask) headers(h http.Header) [][2]string {
	if len(h) == 0 {
		return nil
	}
	names := make([]string, 0, 32) // on the stack
	for name := range h {
		names = append(names, name)
	}
	slices.Sort(names)
	kept, size := make([][2]string, 0, len(h)), 0
	for _, name := range names {
		for _, value := range h[name] {
			if value = m.text(excerpt(value)); m.names[name] || isSecret(name) {
				value = masked
			}
			value = strings.ToValidUTF8(value[:min(len(value), maxValue)], "")
			if size += len(name) + len(value); size > maxKept {
				return kept
			}
			kept = append(kept, [2]string{name, value})
		}
	}
	return kept
}

// Preview returns the headers of the next attempt as operators may see them, without
// signatures.
func Preview(rec *task.Record, body *encode.Body) [][2]string {
	h := make(http.Header)
	setHeader(h, rec, &body.Head, "")
	profile.Of(rec.Callback.Profile).SetHeader(h, rec, time.Now().UTC())
	u, err := url.Parse(rec.Callback.URL)
	if err != nil {
		u = nil // a URL that cannot be used has no secrets that are sent
	}
	m := newMask(rec, u, nil)
	return m.headers(h)
}

// PublicURL returns a URL without its userinfo and query, which may hold secrets.
func PublicURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = nil, "", false, "", ""
	return u.String()
}
