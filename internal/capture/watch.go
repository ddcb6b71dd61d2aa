package capture

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// StallTimeout is how long a client may send nothing while its body is read before
// forwarding. Without a timeout, idle connections could hold their memory and file for
// ever.
const StallTimeout = 30 * time.Second

// ErrStalled is the error of a body whose client sent nothing for [StallTimeout].
var ErrStalled = errors.New("the body stalled")

// watched reads a body and fails if its client stalls.
type watched struct {
	body    io.ReadCloser
	timer   *time.Timer // nil without a response
	stalled atomic.Bool
	unbound bool // the timeout does not apply any more
}

// watch begins to read a request's body. A read fails with [ErrStalled] once the client
// has sent nothing for [StallTimeout]. w is the response to the request, which can end a
// read. If w is nil, there is no timeout.
func (b *watched) watch(w http.ResponseWriter, body io.ReadCloser) {
	if b.body = body; w == nil {
		b.unbound = true
		return
	}
	b.timer = time.AfterFunc(StallTimeout, func() {
		b.stalled.Store(true)
		// This ends the waiting read. Setting a deadline before each read instead would
		// replace the server's own.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // some responses do not support it
	})
	b.timer.Stop()
}

// Read reads from the body.
func (b *watched) Read(p []byte) (int, error) {
	if b.unbound {
		return b.body.Read(p)
	}
	if b.stalled.Load() {
		return 0, ErrStalled
	}
	b.timer.Reset(StallTimeout)
	n, err := b.body.Read(p)
	if !b.timer.Stop() { // it has fired, or is about to
		b.stalled.Store(true)
		return n, ErrStalled
	}
	return n, err
}

// Unbind ends the timeout for later reads.
func (b *watched) Unbind() { b.unbound = true }

// Close closes the body.
func (b *watched) Close() error { return b.body.Close() }
