// Package send makes one attempt to deliver a callback: it builds the request,
// signs it, posts it and reads the answer.
//
//	sender := send.New(send.Options{Timeout: …, Policy: …, Trusted: …, Keys: …})
//	answer := sender.Send(ctx, send.Callback{Record: rec, Body: body}, nil)
//
// The answer says whether the callback was accepted, and whether another attempt may
// succeed. The caller decides when to make that attempt.
package send

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/deadline"
	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Options are the options of a Sender.
type Options struct {
	// Timeout is how long an attempt may take, from connecting to the last byte of
	// the answer. Attempts share timers, so that one can take a hundredth longer.
	Timeout time.Duration
	// Policy applies to URLs that a request has named, Trusted to the operator's URLs.
	Policy, Trusted *safedial.Policy
	// TLS is the configuration of connections to https URLs. If it is nil, Go's
	// defaults apply.
	TLS *tls.Config
	// Keys sign each callback. Every key adds one signature.
	Keys []webhook.Key
	// UserAgent is sent with callbacks whose headers have no User-Agent.
	UserAgent string
	// PerHost is how many connections to one host are kept for reuse.
	PerHost int
	// Dropped is called for each header that cannot be sent. It may be nil.
	Dropped func(taskID, name string)
}

// Sender makes attempts. Send can be called from several goroutines at once.
type Sender struct {
	opts            Options
	timeout         *deadline.Shared // of opts.Timeout
	guarded, owners *connections
}

// New returns a Sender. Close it when it makes no more attempts.
func New(o Options) *Sender {
	return &Sender{
		opts: o, timeout: deadline.New(o.Timeout),
		guarded: newConnections(o, o.Policy), owners: newConnections(o, o.Trusted),
	}
}

// Close closes the connections that are kept for reuse. Attempts in flight continue.
func (s *Sender) Close() {
	s.guarded.close()
	s.owners.close()
}

// Callback is a callback to send.
type Callback struct {
	Record *task.Record // with its Callback; Tries counts the attempts before this one
	Body   *encode.Body
}

// Prepare is called with the request of an attempt before it is signed. It may add
// headers.
type Prepare func(req *http.Request, at time.Time)

// errUnusable is returned for a stored callback that can never be sent.
var errUnusable = errors.New("the callback cannot be sent")

const (
	// maxAnswer is how much of an answer is read, however much a receiver sends. It is
	// enough for the connection to be reused.
	maxAnswer = 16 << 10
	// maxExcerpt is how much of an answer is kept.
	maxExcerpt = 1 << 10
)

// Send makes one attempt. If ctx ends before there is an answer, Err is set; the
// receiver may have received the callback nevertheless. An error that wraps
// encode.ErrSpool is local: no attempt was made. prepare may be nil.
func (s *Sender) Send(ctx context.Context, c Callback, prepare Prepare) Answer {
	at := time.Now().UTC()
	t := &trace{Context: ctx}
	req, err := s.request(t.follow(), c, prepare, at)
	if err != nil {
		return Answer{At: at, Err: err}
	}
	// Signing a large body takes time, which must not count against the receiver's timeout.
	t.Context = s.timeout.Below(ctx)
	if c.Body.InFile() {
		// Over HTTP/2, a receiver that has answered can leave the upload waiting.
		var cancel context.CancelFunc
		t.Context, cancel = context.WithCancel(t.Context)
		defer cancel()
	}
	ans := Answer{At: time.Now().UTC()}
	hidden := newMask(c.Record, req.URL, req.Header)
	header := s.post(req, c.Record, &ans)
	ans.Excerpt = hidden.text(ans.Excerpt)
	ans.Trace = t.record(ans.At)
	ans.Trace.Sent, ans.Trace.Received = hidden.headers(req.Header), hidden.headers(header)
	// The timeout of connecting may expire a moment before that of the attempt.
	if timedOut := cmp.Or(t.Err(), ans.Err); ans.Status == 0 && errors.Is(timedOut, context.DeadlineExceeded) {
		ans.Err = fmt.Errorf("no answer within %v", s.opts.Timeout)
	}
	ans.Took, ans.Connected = time.Since(ans.At), ans.Trace.RemoteAddr != ""
	return ans
}

// post makes the request and reads the answer. It returns the answer's header, and nil
// if there was no answer.
func (s *Sender) post(req *http.Request, rec *task.Record, ans *Answer) http.Header {
	conns := s.guarded
	if rec.Callback.Trusted {
		conns = s.owners
	}
	reusable := false
	defer func() {
		if !reusable {
			conns.stranger(req.URL.Host)
		}
	}()
	// An http.Client would follow redirects, and the URL's check does not cover those.
	resp, err := conns.current().RoundTrip(req)
	if err != nil {
		ans.Err = err
		return nil
	}
	defer resp.Body.Close()
	ans.Status = resp.StatusCode
	if ans.Status == http.StatusSwitchingProtocols {
		return resp.Header // no body follows, and reading would not end
	}
	// The status decides. A body that arrives slowly or incompletely does not change
	// it.
	if resp.ContentLength != 0 {
		var body []byte
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		ans.Excerpt = excerpt(string(body[:min(len(body), maxExcerpt)]))
		reusable = len(body) < maxAnswer
	}
	reusable = !resp.Close && err == nil && (reusable || resp.ContentLength == 0)
	if ans.Status == http.StatusTooManyRequests || ans.Status == http.StatusServiceUnavailable {
		ans.RetryAfter = ParseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return resp.Header
}
