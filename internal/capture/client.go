package capture

import (
	"net/http"
	"time"
)

// ClientStallTimeout is how long a client may read nothing of a response before it is
// treated as gone. The handler blocks until then. Without a timeout, a client that does
// not read could delay the callback until the deadline.
const ClientStallTimeout = 10 * time.Second

// unsent is how many bytes of a response can be written without waiting for the client.
// net/http buffers twice as much; the rest is for outer handlers that add to it.
const unsent = 1 << 10

// beginSend records that the handler waits for the client. stalls is false if the data
// will only be buffered: most responses need no timer.
func (c *Response) beginSend(stalls bool) {
	c.sending.Store(time.Now().UnixNano())
	switch {
	case c.stall != nil:
		c.stall.Reset(ClientStallTimeout)
	case stalls:
		c.stall = time.AfterFunc(ClientStallTimeout, func() { c.dropClient() })
	}
}

// endSend records that the handler does not wait any more.
func (c *Response) endSend(err error) {
	if c.stall != nil {
		c.stall.Stop()
	}
	c.sending.Store(0)
	c.gone = err != nil
}

// dropClient makes a waiting write fail, so that the client is treated as gone. It
// reports whether the server supports that. Setting a deadline before each write
// instead would replace the server's own.
func (c *Response) dropClient() bool {
	return http.NewResponseController(c.client).SetWriteDeadline(time.Now()) == nil
}

// stalledClient is how long the handler must have waited for a client before
// [Response.DropStalled] cuts the client off.
const stalledClient = 500 * time.Millisecond

// DropStalled cuts off a client that blocks the handler because it does not read, and
// reports whether there was one. It may be called from any goroutine.
func (c *Response) DropStalled() bool {
	since := c.sending.Load()
	return since != 0 && time.Since(time.Unix(0, since)) >= stalledClient && c.dropClient()
}
