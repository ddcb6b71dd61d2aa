// Package send makes one attempt to deliver a callback: it builds the request,
// signs it, posts it and reads the answer.
//
//	sender := send.New(send.Options{Timeout: …, Policy: …, Trusted: …, Keys: …})
//	answer := sender.Send(ctx, send.Callback{Record: rec, Body: body})
//
// The answer says whether the callback was accepted, and whether another attempt
// may help. When that is made is not decided here.
package send

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Options say how attempts are made.
type Options struct {
	// Timeout is how long an attempt may take, from connecting to the last byte of
	// the answer.
	Timeout time.Duration
	// Policy is for URLs that a request has named, Trusted for the operator's.
	Policy, Trusted *safedial.Policy
	// TLS is the configuration of connections to https URLs; nil for Go's own.
	TLS *tls.Config
	// Keys sign, each of them.
	Keys []webhook.Key
	// UserAgent is for callbacks whose headers have none.
	UserAgent string
	// PerHost is how many connections to one host are kept open.
	PerHost int
	// Dropped is called for each header that cannot be sent. Optional.
	Dropped func(taskID, name string)
}

// Sender makes attempts. Send can be called from several goroutines at once.
type Sender struct {
	opts            Options
	guarded, owners *connections
}

// New returns a Sender. Close it when it makes no more attempts.
func New(o Options) *Sender {
	return &Sender{opts: o, guarded: newConnections(o, o.Policy), owners: newConnections(o, o.Trusted)}
}

// Close closes the connections that are kept for reuse. Attempts in flight go on.
func (s *Sender) Close() {
	s.guarded.close()
	s.owners.close()
}

// Callback is what is sent.
type Callback struct {
	Record *task.Record // with its Callback; Tries counts the attempts before this one
	Body   *encode.Body
	// Prepare is called with the request when all but the signature is set. It may
	// add headers. Optional.
	Prepare func(req *http.Request, at time.Time)
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

// Send makes one attempt. If ctx ends before there was an answer, the attempt has
// its error; the receiver may have got the callback all the same. An error that
// wraps encode.ErrSpool is not the receiver's: no attempt was made.
func (s *Sender) Send(ctx context.Context, c Callback) Answer {
	at := time.Now().UTC()
	req, err := s.request(ctx, c, at)
	if err != nil {
		return Answer{At: at, Err: err}
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	ans := Answer{At: time.Now().UTC()} // signing a large body is not the receiver's time
	t, hidden := new(trace), newMask(c.Record, req.Header)
	req = req.WithContext(httptrace.WithClientTrace(ctx, t.hooks()))
	header := s.post(req, c.Record, &ans)
	ans.Excerpt = hidden.text(ans.Excerpt)
	ans.Trace = t.record(ans.At)
	ans.Trace.Sent, ans.Trace.Received = hidden.headers(req.Header), hidden.headers(header)
	// What limits connecting may end a moment before ctx does.
	if timedOut := cmp.Or(ctx.Err(), ans.Err); ans.Status == 0 && errors.Is(timedOut, context.DeadlineExceeded) {
		ans.Err = fmt.Errorf("no answer within %v", s.opts.Timeout)
	}
	ans.Took, ans.Connected = time.Since(ans.At), ans.Trace.RemoteAddr != ""
	return ans
}

// post makes the request and reads the answer. It returns the answer's header, nil if
// there was none.
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
	// Not through an http.Client: it would follow redirects, out of the reach of
	// the URL's check.
	resp, err := conns.current().RoundTrip(req)
	if err != nil {
		ans.Err = err
		return nil
	}
	defer resp.Body.Close()
	ans.Status = resp.StatusCode
	if ans.Status == http.StatusSwitchingProtocols {
		return resp.Header // what follows is no body, and would be waited for without end
	}
	// The status has been given; a body that drips or breaks off takes nothing
	// from it.
	if resp.ContentLength != 0 {
		var body []byte
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		ans.Excerpt = excerpt(body)
		reusable = len(body) < maxAnswer
	}
	reusable = !resp.Close && err == nil && (reusable || resp.ContentLength == 0)
	if ans.Status == http.StatusTooManyRequests || ans.Status == http.StatusServiceUnavailable {
		ans.RetryAfter = ParseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return resp.Header
}
