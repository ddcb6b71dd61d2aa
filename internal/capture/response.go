package capture

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// ResponseOptions say what is kept of a response.
type ResponseOptions struct {
	// Limit is how much of the body is kept, in bytes.
	Limit int64
	// AsSent keeps an encoded body as it is, however long. Without it, one that is
	// longer than the limit is decoded.
	AsSent bool
	// KeepHeader keeps the response's header with the result, which can be
	// fetched, or is passed on with it.
	KeepHeader bool
	// ToHEAD says that the response is to HEAD: the length it names is not that of
	// its body.
	ToHEAD bool
}

// Response is the response to a task's request. It keeps a copy, and passes the
// response on to the client as it comes, if there is one. The handler does not
// notice a client that has left: its task goes on.
//
// Only the handler's goroutine writes. Another one (the deadline's) may give the
// verdict and close the copy.
type Response struct {
	// OnWhole, if set, is called once, when the response is known to be whole:
	// before its last byte reaches the client. No lock is held.
	OnWhole func()
	// OnSwitch, if set, is called before the client is told that the connection
	// goes on in another protocol, as it asked.
	OnSwitch func()

	client     http.ResponseWriter // nil if nobody waits
	header     http.Header
	before     http.Header // as it was before the handler
	own        http.Header // the fields that describe the body as the handler wrote it
	taskHeader [2]string   // set on the response whatever the endpoint says
	ResponseOptions

	begun  bool // the handler has given its status
	told   bool // OnWhole was called
	gone   bool // the client takes no more
	expect int64

	// sending is since when the handler waits for the client to take something, in
	// nanoseconds since 1970; 0 if it does not. stall fires if that lasts too long.
	sending atomic.Int64
	stall   *time.Timer

	mu     sync.Mutex
	closed bool // the copy is taken; nothing is added to it
	muted  bool // the client gets nothing more either
	wrote  bool // the client has its header
	status int  // 0 until the endpoint has answered
	body   keptBody
}

// NewResponse returns a response that is passed on to client. If client is nil,
// it is only kept.
func NewResponse(client http.ResponseWriter, o ResponseOptions) *Response {
	c := &Response{client: client, ResponseOptions: o, expect: -1}
	if client == nil {
		c.header = make(http.Header)
	} else {
		c.header = client.Header()
	}
	c.before = maps.Clone(c.header)
	return c
}

// NameTask makes the response carry the ID of a task in a header. An empty name
// takes back what was named before.
func (c *Response) NameTask(header, id string) {
	if c.taskHeader[0] != "" {
		c.header.Del(c.taskHeader[0])
	}
	c.taskHeader = [2]string{header, id}
	c.setTaskHeader()
}

func (c *Response) setTaskHeader() {
	if c.taskHeader[0] != "" {
		c.header.Set(c.taskHeader[0], c.taskHeader[1])
	}
}

// Header implements [http.ResponseWriter].
func (c *Response) Header() http.Header { return c.header }

// Unwrap returns the client's response for [http.ResponseController], nil if there
// is none.
func (c *Response) Unwrap() http.ResponseWriter { return c.client }

// Push implements [http.Pusher].
func (c *Response) Push(target string, opts *http.PushOptions) error {
	if pusher, ok := c.client.(http.Pusher); ok {
		return pusher.Push(target, opts)
	}
	return http.ErrNotSupported
}

// WriteHeader implements [http.ResponseWriter].
func (c *Response) WriteHeader(status int) {
	c.setTaskHeader() // a proxied endpoint may have sent one of its own
	if status < 200 && status != http.StatusSwitchingProtocols {
		// Informational: there will be more. But the body's reader has told the
		// client to continue already.
		if status != http.StatusContinue && c.hasClient() {
			c.client.WriteHeader(status)
		}
		return
	}
	if c.begun {
		return
	}
	if status == http.StatusSwitchingProtocols && c.OnSwitch != nil {
		c.OnSwitch()
	}
	c.begin(status)
	c.mu.Lock()
	c.wrote = c.client != nil && !c.muted
	wrote := c.wrote
	c.mu.Unlock()
	if wrote {
		c.client.WriteHeader(status)
	}
	// Only now, as the handlers further out change the header as it passes. It stays
	// in the server's buffer until the handler writes, flushes or returns.
	if c.expect == 0 {
		c.tell()
	}
}

// bodyFields are the fields of a header that describe the body as it is sent. A
// handler further out that encodes the body for the client changes them.
var bodyFields = []string{"Content-Encoding", "Content-Length", "Etag", "Vary"}

// begin notes what the endpoint answers with.
func (c *Response) begin(status int) {
	c.begun = true
	if c.expect = bodyLength(status, c.header); c.ToHEAD {
		c.expect = 0
	}
	if c.KeepHeader {
		c.own = make(http.Header, len(bodyFields))
		for _, name := range bodyFields {
			if values, ok := c.header[name]; ok {
				c.own[name] = values
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.status = status
		c.body.coding = strings.Join(c.header["Content-Encoding"], ",")
		c.body.limit, c.body.asSent = c.Limit, c.AsSent
	}
}

// bodyLength returns how long the body of a response will be, or -1 if only its
// end will tell.
func bodyLength(status int, header http.Header) int64 {
	if status == http.StatusNoContent || status == http.StatusNotModified {
		return 0
	}
	n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}

// Write implements [io.Writer]. It never fails: the handler must not give up its
// work because the client has.
func (c *Response) Write(p []byte) (int, error) {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	c.mu.Lock()
	if !c.closed {
		c.body.write(p)
	}
	whole := c.expect >= 0 && c.body.size >= c.expect
	c.mu.Unlock()
	if whole {
		c.tell()
	}
	if c.gone || !c.hasClient() {
		return len(p), nil
	}
	c.beginSend()
	_, err := c.client.Write(p)
	c.endSend(err)
	return len(p), nil
}

// ClientStallTimeout is how long a client may take nothing of a response before it
// counts as gone. The endpoint waits for its client until then: without an end, a
// client that stays and does not read would keep the callback until the deadline.
const ClientStallTimeout = 10 * time.Second

// beginSend notes that the handler waits for the client.
func (c *Response) beginSend() {
	c.sending.Store(time.Now().UnixNano())
	if c.stall == nil {
		c.stall = time.AfterFunc(ClientStallTimeout, func() { c.dropClient() })
	} else {
		c.stall.Reset(ClientStallTimeout)
	}
}

// endSend notes that the handler does not wait any more.
func (c *Response) endSend(err error) {
	c.stall.Stop()
	c.sending.Store(0)
	c.gone = err != nil
}

// dropClient makes a write that waits fail, so that the client counts as gone. It
// reports whether the server can do that. A deadline that is set before each write
// would replace the server's own.
func (c *Response) dropClient() bool {
	return http.NewResponseController(c.client).SetWriteDeadline(time.Now()) == nil
}

// stalledClient is how long a client that takes nothing has held up the handler before
// [Response.DropStalled] cuts it off.
const stalledClient = 500 * time.Millisecond

// DropStalled cuts off a client that holds up the handler because it does not read,
// and says whether there was one. It may be called by any goroutine.
func (c *Response) DropStalled() bool {
	since := c.sending.Load()
	return since != 0 && time.Since(time.Unix(0, since)) >= stalledClient && c.dropClient()
}

// tell says, once, that the response is whole.
func (c *Response) tell() {
	if c.told {
		return
	}
	c.told = true
	if c.OnWhole != nil {
		c.OnWhole()
	}
}

// Begun says whether the handler has given its status. It belongs to the handler's
// goroutine.
func (c *Response) Begun() bool { return c.begun }

// Short says whether the handler wrote less than it had announced. It belongs
// to the handler's goroutine.
func (c *Response) Short() bool { return c.expect > 0 && !c.told }

// ReadFrom copies through Write: a response that goes from a file to the
// socket inside the kernel could not be captured.
func (c *Response) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r)
}

// FlushError flushes to the client, if it is still there.
func (c *Response) FlushError() error {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	if c.gone || !c.hasClient() {
		return nil
	}
	c.beginSend()
	err := http.NewResponseController(c.client).Flush()
	if errors.Is(err, http.ErrNotSupported) {
		c.endSend(nil)
		return err
	}
	c.endSend(err)
	return nil
}

// Flush implements [http.Flusher].
func (c *Response) Flush() { _ = c.FlushError() } // a Flusher cannot say that it is not supported

// Close ends the copy; mute also ends what the client gets. It reports false if
// the copy was ended already.
func (c *Response) Close(mute bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.closed, c.muted = true, mute
	return true
}

// Muted says whether the client was cut off.
func (c *Response) Muted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.muted
}

// hasClient says whether there is a client that gets what is written.
func (c *Response) hasClient() bool { return c.client != nil && !c.Muted() }

// HasWritten says whether the client has its header.
func (c *Response) HasWritten() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wrote
}

// Status returns the endpoint's status, 0 if it has given none. It belongs to the
// handler's goroutine.
func (c *Response) Status() int { return c.status }

// Result returns the captured response. It belongs to the handler's goroutine;
// the response must be closed.
func (c *Response) Result() (status int, _ *task.Result, body []byte) {
	if status = c.status; status == 0 {
		status = http.StatusOK // as net/http has it for a handler that writes nothing
	}
	body, size, coding := c.body.take()
	result := &task.Result{
		ContentType:     head(c.header.Get("Content-Type"), maxKeptField),
		ContentEncoding: head(coding, maxKeptField),
		Size:            size,
	}
	if c.KeepHeader {
		result.Kept, result.Header = int64(len(body)), c.endToEnd()
	}
	return status, result, body
}

// Discard forgets the copy and returns the endpoint's status, 0 if it has given
// none. The response must be closed.
func (c *Response) Discard() (status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _, _ = c.body.take() // ends its goroutine
	return c.status
}

// DiscardHeader takes back what the handler set for a response that the client
// does not get.
func (c *Response) DiscardHeader() {
	clear(c.header)
	maps.Copy(c.header, c.before)
	c.setTaskHeader()
}

// Interface guards
var (
	_ http.ResponseWriter = (*Response)(nil)
	_ http.Flusher        = (*Response)(nil)
	_ io.ReaderFrom       = (*Response)(nil)
)
