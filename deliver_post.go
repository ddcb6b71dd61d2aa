package callback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// sender makes attempts as one generation of the configuration says.
type sender struct {
	d       *deliverer
	app     *App
	opts    *Delivery
	guarded *http.Transport // for URLs from requests
	own     *http.Transport // for the operator's
}

func newSender(d *deliverer, app *App) *sender {
	o := app.Delivery
	return &sender{d: d, app: app, opts: o, guarded: newTransport(o.policy, o), own: newTransport(o.trusted, o)}
}

// close gives up the connections that are kept for reuse.
func (s *sender) close() {
	s.guarded.CloseIdleConnections()
	s.own.CloseIdleConnections()
}

const (
	// maxAnswerHeader keeps a receiver from filling memory with headers.
	maxAnswerHeader = 64 << 10
	// maxAhead is how much of an answer over HTTP/2 may be on its way before it is
	// read; the default of 4 MiB for each attempt would be the receivers' to fill.
	maxAhead = 64 << 10
	// idleConnections and idleTimeout are how many connections are kept for
	// reuse, and how long.
	idleConnections = 1024
	idleTimeout     = 90 * time.Second
	// quietTimeout and pingTimeout are when a connection over HTTP/2 on which
	// nothing comes is tried, and given up. All attempts to a host go over it: one
	// that died without a word would fail them for as long as TCP resends.
	quietTimeout = 10 * time.Second
	pingTimeout  = 5 * time.Second
)

// newTransport makes a transport that connects only where the policy permits.
func newTransport(policy *safedial.Policy, o *Delivery) *http.Transport {
	timeout := time.Duration(o.Timeout)
	return &http.Transport{
		Proxy: nil, // a proxy would connect for us, unchecked
		// A transport goes on connecting when the attempt is over. Without limits of
		// their own, connections that never come about would pile up.
		DialContext: func(ctx context.Context, network, hostPort string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			conn, err := policy.DialContext(ctx, network, hostPort)
			if err != nil {
				return nil, err
			}
			return newPatientConn(conn), nil
		},
		TLSClientConfig:        o.tls.Clone(),
		TLSHandshakeTimeout:    timeout,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           idleConnections,
		MaxIdleConnsPerHost:    o.PerHost,
		IdleConnTimeout:        idleTimeout,
		DisableCompression:     true, // an answer is never expanded
		MaxResponseHeaderBytes: maxAnswerHeader,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: maxAhead,
			SendPingTimeout:           quietTimeout,
			PingTimeout:               pingTimeout,
		},
	}
}

// answer is what came of an attempt.
type answer struct {
	at         time.Time // when the attempt began
	took       time.Duration
	status     int // 0 if there was none
	excerpt    string
	retryAfter time.Duration
	span       trace.Span // nil if none was begun
	err        error
}

func (a *answer) accepted() bool { return a.status >= 200 && a.status < 300 }

// final says that trying again is of no use: the receiver said 410, the address is
// refused, or the result was in a file that was damaged.
func (a *answer) final() bool {
	var refused *safedial.RefusedError
	return a.status == http.StatusGone || errors.As(a.err, &refused) || errors.Is(a.err, errUnusable) ||
		errors.Is(a.err, engine.ErrNotFound)
}

// maxMessage bounds an error kept in an attempt's record.
const maxMessage = 300

// message says why there was no answer. It holds nothing of what the receiver
// sent: net/http quotes what it does not understand, and a receiver that echoes
// would have the callback's body and its URL's query in the log. Nor does it hold
// addresses, of this machine, its resolver or a host that allow names: a queue's
// clients can read it.
func (a *answer) message() string {
	if a.err == nil {
		return ""
	}
	s := a.err.Error()
	var lookup *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(a.err, &lookup) && lookup.IsNotFound:
		s = "no such host"
	case errors.As(a.err, &lookup):
		s = "the resolver gave no answer"
	case errors.As(a.err, &op):
		for inner := op; errors.As(inner.Err, &inner); {
			op = inner // the text of an outer one has the addresses
		}
		s = op.Op + ": " + op.Err.Error()
	}
	if strings.Contains(s, "malformed") {
		return "the answer is not HTTP"
	}
	s, _, _ = strings.Cut(s, `"`)
	return strings.ToValidUTF8(s[:min(len(s), maxMessage)], "")
}

// errUnusable is a stored callback that can never be sent.
var errUnusable = errors.New("the callback cannot be sent")

const (
	// maxAnswer is how much of an answer is read: enough for the connection to
	// be used again, and no more, however much a receiver sends.
	maxAnswer = 16 << 10
	// maxExcerpt is how much of it is kept.
	maxExcerpt = 1 << 10
)

// post makes the request and reads the answer.
func (s *sender) post(dl engine.Delivery) (ans answer) {
	ans.at = time.Now().UTC()
	defer func() { ans.took = time.Since(ans.at) }()
	ctx, cancel := context.WithTimeout(s.d.store.quit, time.Duration(s.opts.Timeout))
	defer cancel()
	req, err := s.request(ctx, dl, ans.at)
	if err != nil {
		ans.err = err
		return ans
	}
	ans.span = s.startAttempt(dl.Record(), req, ans.at)
	hushStdLog()
	transport := s.guarded
	if dl.Record().Callback.Trusted {
		transport = s.own
	}
	// Not through an http.Client: it would follow redirects, out of the reach of
	// the URL's check.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", time.Duration(s.opts.Timeout))
		}
		ans.err = err
		return ans
	}
	defer resp.Body.Close()
	ans.status = resp.StatusCode
	if ans.status == http.StatusSwitchingProtocols {
		return ans // what follows is no body, and would be waited for without end
	}
	// The status has been given; a body that drips or breaks off takes nothing
	// from it.
	if resp.ContentLength != 0 {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		ans.excerpt = excerpt(body)
	}
	if ans.status == http.StatusTooManyRequests || ans.status == http.StatusServiceUnavailable {
		ans.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return ans
}

// excerpt returns the beginning of an answer as text. Control characters stay
// out of it: it is shown in terminals, and takes six times its size in JSON.
func excerpt(body []byte) string {
	text := strings.ToValidUTF8(string(body[:min(len(body), maxExcerpt)]), "\uFFFD")
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\n' || c == '\t' || !unicode.IsControl(c):
			return c
		case c == '\r':
			return -1
		default:
			return '\uFFFD'
		}
	}, text)
}

// parseRetryAfter reads seconds or a date (RFC 9110, section 10.2.3). What is
// neither, or past, is no wait.
func parseRetryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	seconds, err := strconv.ParseUint(value, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) { // then it is the largest there is
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

// request builds the callback of a task.
func (s *sender) request(ctx context.Context, dl engine.Delivery, at time.Time) (*http.Request, error) {
	rec := dl.Record()
	body, err := encode(ctx, dl)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, rec.Callback.URL, bytes.NewReader(body.Body))
	if err != nil {
		return nil, errUnusable // its text would have the URL's query
	}
	h := req.Header
	set := func(name, value string) {
		if value != "" {
			h.Set(name, value)
		}
	}
	for _, field := range rec.Callback.Header {
		h.Add(field[0], field[1])
	}
	set("Content-Type", body.ContentType)
	set("Content-Encoding", body.ContentEncoding)
	set("Callback-Encoding", body.Encoding)
	if body.Truncated > 0 {
		h.Set("Callback-Truncated", strconv.FormatInt(body.Truncated, 10))
	}
	setDefaultHeader(h, "User-Agent", "caddy-callback/"+Version)
	// The OWASP core rule set of web application firewalls refuses requests without.
	setDefaultHeader(h, "Accept", "*/*")
	h.Set("Idempotency-Key", deliveryKey(rec))
	h.Set(rec.Callback.TaskHeader, rec.ID)
	h.Set(rec.Callback.StatusHeader, string(rec.Status))
	h.Set("Callback-Attempt", strconv.Itoa(rec.Tries+1))
	s.app.setHop(ctx, h, req.URL)
	if rec.UpstreamStatus != 0 {
		h.Set("Callback-Upstream-Status", strconv.Itoa(rec.UpstreamStatus))
	}
	set("Traceparent", rec.Callback.Traceparent)
	setProfileHeader(h, rec, s.opts.keys, at, body.Body)
	if len(s.opts.keys) > 0 {
		h.Set(webhook.HeaderID, rec.ID)
		h.Set(webhook.HeaderTimestamp, strconv.FormatInt(at.Unix(), 10))
		h.Set(webhook.HeaderSignature, webhook.Sign(s.opts.keys, rec.ID, at, body.Body))
	}
	s.dropUnsendable(h, rec.ID)
	return req, nil
}

// readResult reads the task's result.
func readResult(ctx context.Context, dl engine.Delivery) ([]byte, error) {
	body, err := dl.Result(ctx)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(body)
}

// encode makes the callback's body of the task's result.
func encode(ctx context.Context, dl engine.Delivery) (form.Callback, error) {
	rec := dl.Record()
	var resp *form.Response
	if rec.Result != nil {
		body, err := readResult(ctx, dl)
		if err != nil {
			return form.Callback{}, err
		}
		resp = &form.Response{
			ContentType: rec.Result.ContentType, ContentEncoding: rec.Result.ContentEncoding,
			Body: body, Size: rec.Result.Size,
		}
	}
	if body, ok := encodeProfile(rec, resp); ok {
		return body, nil
	}
	limit := rec.Callback.MaxResult
	switch {
	case rec.Callback.Format == formatJSON:
		return form.EncodeJSON(form.Head{
			TaskID: rec.ID, Status: string(rec.Status), UpstreamStatus: rec.UpstreamStatus, Error: rec.Error,
		}, resp, limit), nil
	case resp == nil:
		return form.EncodeError(rec.Error), nil
	case rec.Callback.Format == formatRaw:
		return form.EncodeRaw(*resp, limit), nil
	default:
		return form.Encode(*resp, limit), nil
	}
}
