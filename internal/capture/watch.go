package capture

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

// StallTimeout is how long a client may send nothing of a body that is read before
// it is forwarded. Without an end, each connection would cost its memory and its
// file for as long as its owner likes.
const StallTimeout = 30 * time.Second

// ErrStalled is the error of a body whose client sent nothing for [StallTimeout].
var ErrStalled = errors.New("the body stalled")

// Watched reads a body and gives it up if its client stalls.
type Watched struct {
	body    io.ReadCloser
	timer   *time.Timer // nil without a response
	stalled atomic.Bool
	unbound bool // nobody watches any more
}

// Watch returns a reader of a request's body whose reads fail with [ErrStalled]
// once the client has sent nothing for [StallTimeout]. The response to the request
// is what can end a read. If w is nil, nothing does.
func Watch(w http.ResponseWriter, body io.ReadCloser) *Watched {
	b := &Watched{body: body}
	if w == nil {
		b.unbound = true
		return b
	}
	control := http.NewResponseController(w)
	b.timer = time.AfterFunc(StallTimeout, func() {
		b.stalled.Store(true)
		// Ends the read that waits. A deadline that is set for each read would be
		// one that the server's own does not count against any more.
		_ = control.SetReadDeadline(time.Now()) // a response without one cannot be helped
	})
	b.timer.Stop()
	return b
}

// Read reads from the body.
func (b *Watched) Read(p []byte) (int, error) {
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

// Unbind ends the watch: what is read from now on may take as long as it likes.
func (b *Watched) Unbind() { b.unbound = true }

// Close closes the body.
func (b *Watched) Close() error { return b.body.Close() }
