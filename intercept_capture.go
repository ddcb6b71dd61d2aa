package callback

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// capture passes a response on to the client as it comes, and keeps a copy. A
// client that has left is not noticed by the handler: its task goes on.
//
// Only the handler's goroutine writes; the verdict may be given by another
// (the deadline's), which closes the capture.
type capture struct {
	*caddyhttp.ResponseWriterWrapper
	before http.Header // the client's header as it was before the handler
	limit  int64
	asSent bool // keep an encoded body as it is, however long
	// keepHeader keeps the response's header with the result, which can be
	// fetched, or is passed on with it.
	keepHeader bool
	// complete is called once the response is known to be whole, before its
	// last byte goes out. It is called without the lock.
	complete func()
	// switched, if set, is called before the client is told that the connection
	// goes on in another protocol, as it asked.
	switched func()
	// taskHeader is set on the response whatever the endpoint says.
	taskHeader [2]string
	// ofHEAD is a response to HEAD: the length it names is not that of its body.
	ofHEAD bool

	begun  bool // the handler has given its status
	told   bool // complete was called
	gone   bool // the client takes no more
	expect int64
	// sending is since when the handler waits for the client to take something, in
	// nanoseconds since 1970; 0 if it does not.
	sending atomic.Int64

	mu     sync.Mutex
	closed bool // the copy is taken; nothing is added to it
	muted  bool // the client gets nothing more either
	wrote  bool // the client has its header
	status int  // 0 until the endpoint has answered
	body   keptBody
}

// newCapture returns the capture of a response to w, for the task id of h.
func newCapture(w http.ResponseWriter, h *Handler, id string) *capture {
	return &capture{
		ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w},
		before:                maps.Clone(w.Header()),
		limit:                 h.MaxResult,
		asSent:                h.Format == formatRaw,
		keepHeader:            h.Profile == profileOpenFaaS,
		taskHeader:            [2]string{h.TaskHeader, id},
		expect:                -1,
	}
}

// setTaskHeader names the task to the client.
func (c *capture) setTaskHeader() { c.Header().Set(c.taskHeader[0], c.taskHeader[1]) }

func (c *capture) WriteHeader(status int) {
	c.setTaskHeader() // a proxied endpoint may have sent one of its own
	if status < 200 && status != http.StatusSwitchingProtocols {
		// Informational: there will be more. But the body's reader has told the
		// client to continue already.
		if status != http.StatusContinue && !c.isMuted() {
			c.ResponseWriter.WriteHeader(status)
		}
		return
	}
	if c.begun {
		return
	}
	if status == http.StatusSwitchingProtocols && c.switched != nil {
		c.switched()
		c.Header().Del(c.taskHeader[0])
	}
	c.begun = true
	if c.expect = bodyLength(status, c.Header()); c.ofHEAD {
		c.expect = 0
	}
	c.mu.Lock()
	if !c.closed {
		c.status = status
		c.body.coding = strings.Join(c.Header()["Content-Encoding"], ",")
		c.body.limit, c.body.asSent = c.limit, c.asSent
	}
	c.mu.Unlock()
	if c.expect == 0 {
		c.tell() // the header alone is the whole response
	}
	c.mu.Lock()
	c.wrote = !c.muted
	muted := c.muted
	c.mu.Unlock()
	if !muted {
		c.ResponseWriter.WriteHeader(status)
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

// Write never fails: the handler must not give up its work because the client
// has.
func (c *capture) Write(p []byte) (int, error) {
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
	if c.gone || c.isMuted() {
		return len(p), nil
	}
	c.sending.Store(time.Now().UnixNano())
	defer c.sending.Store(0)
	if _, err := c.ResponseWriter.Write(p); err != nil {
		c.gone = true
	}
	return len(p), nil
}

// stalled is how long a client that takes nothing has held up the handler before it
// counts as stalled.
const stalled = 500 * time.Millisecond

// dropStalled cuts off a client that holds up the handler because it does not read,
// and says whether there was one. It may be called by any goroutine.
func (c *capture) dropStalled() bool {
	since := c.sending.Load()
	if since == 0 || time.Since(time.Unix(0, since)) < stalled {
		return false
	}
	// The write that waits fails, and the client counts as gone.
	return http.NewResponseController(c.ResponseWriter).SetWriteDeadline(time.Now()) == nil
}

// tell says, once, that the response is whole.
func (c *capture) tell() {
	if !c.told {
		c.told = true
		c.complete()
	}
}

// short says whether the handler wrote less than it had announced. It belongs
// to the handler's goroutine.
func (c *capture) short() bool { return c.expect > 0 && !c.told }

// ReadFrom copies through Write: a response that goes from a file to the
// socket inside the kernel could not be captured.
func (c *capture) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r)
}

// FlushError flushes to the client, if it is still there.
func (c *capture) FlushError() error {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	if c.gone || c.isMuted() {
		return nil
	}
	c.sending.Store(time.Now().UnixNano())
	defer c.sending.Store(0)
	err := http.NewResponseController(c.ResponseWriter).Flush()
	if errors.Is(err, http.ErrNotSupported) {
		return err
	}
	c.gone = err != nil
	return nil
}

// Flush implements http.Flusher.
func (c *capture) Flush() { _ = c.FlushError() } // a Flusher cannot say that it is not supported

// close ends the copy; mute also ends what the client gets. It reports false if
// the copy was ended already.
func (c *capture) close(mute bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.closed, c.muted = true, mute
	return true
}

// isMuted says whether the client was cut off.
func (c *capture) isMuted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.muted
}

// hasWritten says whether the client has its header.
func (c *capture) hasWritten() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wrote
}

// result returns the captured response. It belongs to the handler's goroutine;
// the capture must be closed.
func (c *capture) result() (status int, _ *task.Result, body []byte) {
	if status = c.status; status == 0 {
		status = http.StatusOK // as net/http has it for a handler that writes nothing
	}
	body, size, coding := c.body.take()
	result := &task.Result{
		ContentType:     head(c.Header().Get("Content-Type"), maxKeptField),
		ContentEncoding: head(coding, maxKeptField),
		Size:            size,
	}
	if c.keepHeader {
		result.Kept, result.Header = int64(len(body)), endToEnd(c.Header())
	}
	return status, result, body
}

// maxKeptHeader bounds the header that is kept with a result, in bytes: it must
// fit in the task's record.
const maxKeptHeader = 32 << 10

// endToEnd returns the fields of a response's header that are its own and not
// the connection's (RFC 9110, section 7.6.1); of one that is too large to be kept
// only those without which the body cannot be read.
func endToEnd(header http.Header) http.Header {
	size := 0
	for name, values := range header {
		for _, value := range values {
			size += len(name) + len(value)
		}
	}
	kept := maps.Clone(header)
	if size > maxKeptHeader {
		maps.DeleteFunc(kept, func(name string, values []string) bool {
			needed := name == "Content-Type" || name == "Content-Encoding"
			return !needed || len(strings.Join(values, "")) > maxKeptField
		})
	}
	hop := append([]string{
		"Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length",
	}, strings.Split(strings.Join(kept["Connection"], ","), ",")...)
	for _, name := range append(hop, "Connection") {
		delete(kept, http.CanonicalHeaderKey(strings.TrimSpace(name)))
	}
	return kept
}

// maxKeptField bounds what is kept of the type and of the codings of a result,
// which must fit in the task's record. Longer ones are nobody's.
const maxKeptField = 1 << 10

// head returns the first n bytes of s.
func head(s string, n int) string { return s[:min(len(s), n)] }

// retryAfter is what the endpoint asks for. It belongs to the handler's
// goroutine.
func (c *capture) retryAfter() time.Duration {
	return send.ParseRetryAfter(c.Header().Get("Retry-After"), time.Now())
}

// discard forgets the copy and returns the endpoint's status, 0 if it has given
// none. The capture must be closed.
func (c *capture) discard() (status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _, _ = c.body.take() // ends its goroutine
	return c.status
}

// discardHeader takes back what the handler set for a response that the client
// does not get.
func (c *capture) discardHeader() {
	header := c.ResponseWriter.Header()
	clear(header)
	maps.Copy(header, c.before)
	c.setTaskHeader()
}

// keptBody keeps the beginning of a body that is written to it. An encoded body
// that is longer than the limit is decoded as it comes, so that what is kept is
// the beginning of the result and not that of its encoding.
type keptBody struct {
	coding string
	limit  int64
	asSent bool  // do not decode
	size   int64 // as sent
	kept   []byte
	inflow *inflow
}

func (b *keptBody) write(p []byte) {
	b.size += int64(len(p))
	if b.inflow != nil {
		b.inflow.write(p)
		return
	}
	room := b.limit - int64(len(b.kept))
	b.kept = append(b.kept, p[:min(room, int64(len(p)))]...)
	if room < int64(len(p)) && b.coding != "" && !b.asSent {
		b.inflow = newInflow(b.coding, b.limit)
		b.inflow.write(b.kept)
		b.inflow.write(p[room:])
	}
}

// take returns what was kept, the size of the whole and the coding that both
// are in. It ends what decodes; nothing may be written afterwards.
func (b *keptBody) take() (kept []byte, size int64, coding string) {
	if b.inflow != nil {
		if kept, size, err := b.inflow.end(); err == nil {
			return kept, size, ""
		}
	}
	return b.kept, b.size, b.coding
}

// inflow decodes what is written to it, in a goroutine that ends with it.
type inflow struct {
	pipe *io.PipeWriter
	done chan struct{}
	kept bytes.Buffer
	size int64
	err  error
}

// maxInflated is how far an encoded body is decoded to learn its size: a few
// kilobytes can stand for terabytes. Beyond it the size is a lower bound.
const maxInflated = 64 << 20

func newInflow(coding string, limit int64) *inflow {
	reader, writer := io.Pipe()
	f := &inflow{pipe: writer, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.err = f.run(coding, reader, limit)
		_, _ = io.Copy(io.Discard, reader) // the writer must not block
	}()
	return f
}

func (f *inflow) run(coding string, encoded io.Reader, limit int64) error {
	reader, err := form.NewReader(coding, encoded)
	if err != nil {
		return err
	}
	defer reader.Close()
	if f.size, err = io.CopyN(&f.kept, reader, limit); err == io.EOF {
		return nil
	} else if err != nil {
		return err
	}
	more, err := io.CopyN(io.Discard, reader, maxInflated)
	f.size += more
	if err == io.EOF {
		return nil
	}
	return err
}

// write never fails: the goroutine reads to the end.
func (f *inflow) write(p []byte) { _, _ = f.pipe.Write(p) }

func (f *inflow) end() (kept []byte, size int64, err error) {
	f.pipe.Close()
	<-f.done
	return f.kept.Bytes(), f.size, f.err
}

// Interface guards
var (
	_ http.ResponseWriter = (*capture)(nil)
	_ http.Flusher        = (*capture)(nil)
	_ io.ReaderFrom       = (*capture)(nil)
)
