package capture

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// ResponseOptions configure which parts of a response are kept.
type ResponseOptions struct {
	// Limit is how much of the body is kept, in bytes.
	Limit int64
	// MaxLarge is up to which size a body over the limit is kept whole and as sent, in
	// bytes. Zero means none. It is kept in a file in Folder.
	MaxLarge int64
	Folder   string
	// AsSent keeps the encoding of an encoded body. Without it, a body that is longer
	// than the limit is decoded.
	AsSent bool
	// KeepHeader keeps the response's header with the result, for receivers or look-ups
	// that need it.
	KeepHeader bool
	// ToHEAD means that the request is HEAD, so the Content-Length is not the length of
	// the body.
	ToHEAD bool
}

// Response is the response to a task's request. It keeps a copy, and forwards the
// response to the client, if there is one. The handler does not notice when the client
// leaves, so the task continues.
//
// Only the handler's goroutine writes. Another goroutine, such as the one for the
// deadline, may decide the verdict and close the copy.
type Response struct {
	// Owner is told when the response is complete. It may be nil.
	Owner Owner
	// OnSwitch, if set, is called before the client gets a response that switches
	// protocols.
	OnSwitch func()

	client     http.ResponseWriter // nil if nobody waits
	header     http.Header
	before     []headerField  // the header before the handler ran
	fewBefore  [4]headerField // the memory of before, if it is enough
	own        http.Header    // the handler's fields that describe the body
	taskHeader [2]string      // replaces the endpoint's own
	ResponseOptions

	begun    bool // the handler has set a status
	reported bool // Owner knows that the response is complete
	gone     bool // the client has left
	expect   int64
	passed   int64 // bytes that were passed on to the client

	// sending is the time since which the handler waits for the client, in nanoseconds
	// since 1970, or 0. stall fires if the wait takes too long.
	sending atomic.Int64
	stall   *time.Timer

	mu     sync.Mutex
	closed bool // the copy is complete; nothing is added
	muted  bool // nothing is sent to the client either
	wrote  bool // the header was sent to the client
	status int  // 0 until the endpoint has responded
	body   keptBody
}

// Owner is what a response belongs to.
type Owner interface {
	// ResponseWhole is called once, when the response is complete and before its last
	// byte reaches the client. No lock is held.
	ResponseWhole()
}

// Init prepares a new response that is forwarded to client. If client is nil, it is only
// kept.
func (c *Response) Init(client http.ResponseWriter, o ResponseOptions) {
	c.client, c.ResponseOptions, c.expect = client, o, -1
	if client == nil {
		c.header = make(http.Header)
		return
	}
	c.header, c.before = client.Header(), c.fewBefore[:0]
	for name, values := range c.header {
		c.before = append(c.before, headerField{name, values})
	}
}

// headerField is a field of a header.
type headerField struct {
	name   string
	values []string
}

// NameTask adds a task's ID to the response, in the given header. An empty name removes
// the previous one.
func (c *Response) NameTask(header, id string) {
	if c.taskHeader[0] != "" {
		c.header.Del(c.taskHeader[0])
	}
	c.taskHeader = [2]string{http.CanonicalHeaderKey(header), id}
	c.setTaskHeader()
}

func (c *Response) setTaskHeader() {
	name, id := c.taskHeader[0], c.taskHeader[1]
	if values := c.header[name]; name != "" && (len(values) != 1 || values[0] != id) {
		c.header[name] = []string{id}
	}
}

// Header implements [http.ResponseWriter].
func (c *Response) Header() http.Header { return c.header }

// Unwrap returns the client's response for [http.ResponseController], or nil.
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
	c.setTaskHeader() // a proxied endpoint may have sent the same header
	if status < 200 && status != http.StatusSwitchingProtocols {
		// An informational response; the final one follows. 100 Continue was already sent
		// when the body was read.
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
	// Written only now, because outer handlers change the header as it passes. The
	// server buffers it until the handler writes, flushes or returns.
	if c.expect == 0 {
		c.tell()
	}
}

// bodyFields are the header fields that describe the body as sent. An outer handler
// that encodes the body for the client changes them.
var bodyFields = []string{"Content-Encoding", "Content-Length", "Etag", "Vary"}

// begin records the status and the header of the endpoint's response.
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
		c.body.large = wholeBody{folder: c.Folder, max: c.MaxLarge}
	}
}

// bodyLength returns the length of a response's body, or -1 if it is unknown.
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

// Write implements [io.Writer]. It never fails, because the handler must continue when
// the client has left.
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
	c.passed += int64(len(p))
	// Caddy's encode flushes each write of an incremental response.
	c.beginSend(c.passed > unsent || c.Header()["Incremental"] != nil)
	_, err := c.client.Write(p)
	c.endSend(err)
	return len(p), nil
}

// tell tells the owner that the response is complete, once.
func (c *Response) tell() {
	if c.reported {
		return
	}
	c.reported = true
	if c.Owner != nil {
		c.Owner.ResponseWhole()
	}
}

// Begun reports whether the handler has set a status. It may be called only from the
// handler's goroutine.
func (c *Response) Begun() bool { return c.begun }

// Short reports whether the handler wrote less than the announced length. It may be
// called only from the handler's goroutine.
func (c *Response) Short() bool { return c.expect > 0 && !c.reported }

// ReadFrom copies through Write. The kernel's copy from a file to a socket could not be
// captured.
func (c *Response) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r)
}

// FlushError flushes to the client, unless it has left.
func (c *Response) FlushError() error {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	if c.gone || !c.hasClient() {
		return nil
	}
	c.beginSend(true)
	err := http.NewResponseController(c.client).Flush()
	if errors.Is(err, http.ErrNotSupported) {
		c.endSend(nil)
		return err
	}
	c.endSend(err)
	return nil
}

// Flush implements [http.Flusher].
func (c *Response) Flush() { _ = c.FlushError() } // Flush has no error

// Close ends the copy; mute also ends the response to the client. It reports false if
// the copy had already ended.
func (c *Response) Close(mute bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.closed, c.muted = true, mute
	return true
}

// Muted reports whether the client was cut off.
func (c *Response) Muted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.muted
}

// hasClient reports whether a client still gets the response.
func (c *Response) hasClient() bool { return c.client != nil && !c.Muted() }

// HasWritten reports whether the header was sent to the client.
func (c *Response) HasWritten() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wrote
}

// Status returns the endpoint's status, or 0. It may be called only from the handler's
// goroutine.
func (c *Response) Status() int { return c.status }

// Result returns the captured response. It may be called only from the handler's
// goroutine, after Close. The caller closes the body.
func (c *Response) Result() (status int, _ *task.Result, body *Copy) {
	if status = c.status; status == 0 {
		status = http.StatusOK // as in net/http, for a handler that writes nothing
	}
	body, size, coding := c.body.take()
	result := &task.Result{
		ContentType:     head(c.header.Get("Content-Type"), maxKeptField),
		ContentEncoding: head(coding, maxKeptField),
		Size:            size,
	}
	if c.KeepHeader {
		result.Kept, result.Header = body.Size(), c.endToEnd()
	}
	return status, result, body
}

// Discard drops the copy and returns the endpoint's status, or 0. It is called after
// Close.
func (c *Response) Discard() (status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, _, _ := c.body.take() // ends its goroutine
	body.Close()
	return c.status
}

// DiscardHeader removes the header that the handler set for a response that is not sent
// to the client.
func (c *Response) DiscardHeader() {
	clear(c.header)
	for _, f := range c.before {
		c.header[f.name] = f.values
	}
	c.setTaskHeader()
}

// Interface guards
var (
	_ http.ResponseWriter = (*Response)(nil)
	_ http.Flusher        = (*Response)(nil)
	_ io.ReaderFrom       = (*Response)(nil)
)
