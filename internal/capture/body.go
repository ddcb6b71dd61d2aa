package capture

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
)

const (
	// maxMemory is how much of a body is kept in memory, in bytes. The rest goes to a
	// file. Otherwise some hundred connections could use up the memory.
	maxMemory = 256 << 10

	// maxLarge is the largest body that is kept in memory as a whole, in bytes, while
	// there is one of the maxLargeBodies places for it. A file costs a third of the rate.
	maxLarge       = 2 << 20
	maxLargeBodies = 16

	// firstRead is the initial size of a body's buffer, in bytes. The buffer grows as
	// data arrives, so that a client cannot allocate megabytes by announcing a large
	// body.
	firstRead = 64 << 10

	// searchEvery is how much is read before each search, in bytes. The data is then
	// still in the processor's cache.
	searchEvery = 64 << 10

	// maxPooled keeps large buffers out of the pool.
	maxPooled = 2 * maxMemory
)

// Body is a request body whose beginning was read ahead. It reads like the original
// body.
//
// Close may be called while another goroutine reads.
type Body struct {
	rest   watched
	part   io.LimitedReader // of rest
	folder string
	length int64 // as announced; -1 if unknown
	size   int64 // bytes read from rest

	mu     sync.Mutex    // a transport may close while it reads
	head   *bytes.Buffer // the beginning; nil once it has been read again
	large  bool          // head has one of the places for large bodies
	spool  *os.File      // the part after head; nil if there is none, or it was read again
	at     int64         // read position in the spool
	tail   []byte        // the last part, which could not be written to the spool
	err    error         // returned instead of reading rest
	closed bool
}

func newBody(r *http.Request, o Options) *Body {
	b := &Body{folder: o.Folder, length: r.ContentLength, head: getBuffer()}
	b.rest.watch(o.Response, r.Body)
	b.head.Grow(int(min(max(r.ContentLength, 0), firstRead)) + bytes.MinRead)
	return b
}

// Spool reads a request's body up to one byte more than o.Limit, so that a slow or
// stalled client uses a file instead of memory. It replaces the body with a [Body]. The
// error is a [*problem.Problem]. Errors of the body itself are returned by the Body's
// Read.
func Spool(r *http.Request, o Options) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	if b, ok := r.Body.(*Body); ok && (b.err != nil || b.size > o.Limit) {
		return nil // already read
	}
	body := newBody(r, o)
	r.Body = body
	_, err := body.readTo(o.Limit+1, "")
	if err == errSpool {
		return noRoom
	}
	return refusalOf(err)
}

// Release frees the buffer and the file. Later reads return an error. The original body
// stays open.
func (b *Body) Release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.free()
}

// begin reads the first part of the body and reports whether it may be a JSON object.
// Arrays and messages with a binary header are not read any further. reason is NotJSON
// if no JSON begins so.
func (b *Body) begin() (object bool, _ Reason, _ error) {
	for b.err == nil && b.size < searchEvery {
		b.head.Grow(bytes.MinRead)
		part := b.head.AvailableBuffer()
		n, err := b.rest.Read(part[:min(cap(part), searchEvery)])
		b.head.Write(part[:n])
		b.size += int64(n)
		if err != nil {
			b.end(err)
		}
		start := bytes.TrimLeft(bytes.TrimPrefix(b.head.Bytes(), utf8BOM), " \t\r\n")
		if len(start) > 0 && !bytes.HasPrefix(utf8BOM, b.head.Bytes()) {
			if start[0] == '{' {
				return true, "", b.stall()
			}
			return false, beginning(start[0]), b.stall()
		}
	}
	return true, "", b.stall()
}

// beginning returns [NotJSON] if no JSON text begins with c: examples are a second byte
// order mark, UTF-16 with a byte order mark, and JSONP.
func beginning(c byte) Reason {
	if strings.IndexByte(`{["-0123456789tfn`, c) >= 0 {
		return ""
	}
	return NotJSON
}

// readTo reads the body up to limit bytes. It reports whether the data may have a
// member with that name. The error is [ErrStalled] or errSpool. Errors of the body
// itself are kept for Read.
func (b *Body) readTo(limit int64, field string) (named bool, err error) {
	defer b.rest.Unbind()
	overlap := max(len(field), len(escape)+2) - 1
	search := func(part []byte) { named = named || field != "" && mayName(part, field) }
	search(b.head.Bytes())
	inMemory := limit
	if b.folder != "" {
		inMemory = min(limit, maxMemory)
	}
	part := &b.part
	part.R = &b.rest
	for b.err == nil && (b.size < inMemory || b.size < limit && b.enlarge()) {
		if b.large {
			inMemory = min(limit, maxLarge)
		}
		part.N = min(inMemory-b.size, searchEvery)
		n, err := b.head.ReadFrom(part)
		b.size += n
		if err == nil && part.N > 0 {
			err = io.EOF
		}
		b.end(err)
		search(b.head.Bytes()[max(0, b.head.Len()-int(n)-overlap):])
	}
	if b.err != nil || b.size >= limit {
		return named, b.stall()
	}
	chunk := getBuffer()
	defer putBuffer(chunk)
	chunk.Write(b.head.Bytes()[max(0, b.head.Len()-overlap):])
	for b.err == nil && b.size < limit {
		old := chunk.Len()
		part.N = min(limit-b.size, searchEvery)
		n, err := chunk.ReadFrom(part)
		b.size += n
		if err == nil && part.N > 0 {
			err = io.EOF
		}
		b.end(err)
		search(chunk.Bytes())
		if !b.store(chunk.Bytes()[old:]) {
			return named, errSpool
		}
		keep := min(overlap, chunk.Len())
		rest := chunk.Bytes()[chunk.Len()-keep:]
		chunk.Reset()
		chunk.Write(rest) // rest is the end of the same buffer
	}
	return named, b.stall()
}

// enlarge moves the beginning of the body to a large buffer, if all of the body fits and
// there is a place for it.
func (b *Body) enlarge() bool {
	if b.large || b.length <= maxMemory || b.length > maxLarge {
		return false
	}
	select {
	case largePlaces <- struct{}{}:
	default:
		return false
	}
	buffer := largeBuffers.Get().(*bytes.Buffer)
	buffer.Write(b.head.Bytes())
	putBuffer(b.head)
	b.head, b.large = buffer, true
	return true
}

// dropHead frees the buffer.
func (b *Body) dropHead() {
	if b.large {
		b.head.Reset()
		largeBuffers.Put(b.head)
		<-largePlaces
		b.large = false
	} else {
		putBuffer(b.head)
	}
	b.head = nil
}

// errSpool means that the body cannot be stored in a file.
var errSpool = errors.New("the body cannot be stored in a file")

// end records the error or EOF that the body ended with.
func (b *Body) end(err error) {
	if err != nil {
		b.err = err
	}
}

// stall returns ErrStalled if the body ended with it.
func (b *Body) stall() error {
	if b.err == ErrStalled {
		return ErrStalled
	}
	return nil
}

// store appends data to the spool. Data that it cannot write becomes the tail.
func (b *Body) store(data []byte) bool {
	if len(data) == 0 {
		return true
	}
	if b.spool == nil {
		var err error
		if b.spool, err = newSpool(b.folder); err != nil {
			b.tail = bytes.Clone(data)
			return false
		}
	}
	n, err := b.spool.Write(data)
	if err != nil {
		b.tail = bytes.Clone(data[n:])
		return false
	}
	return true
}

// newSpool creates a file that is removed when it is closed or the process ends.
func newSpool(folder string) (*os.File, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(folder, "body-*") // mode 0600
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name()) // Windows cannot remove an open file; removeSpool removes it
	return f, nil
}

// spooled returns the size of the spool.
func (b *Body) spooled() int64 { return b.size - int64(b.head.Len()) - int64(len(b.tail)) }

// bytes returns the first n bytes of the body. It is called before the body is read.
func (b *Body) bytes(n int64) ([]byte, error) {
	head := b.head.Bytes()
	if n <= int64(len(head)) {
		return head[:n], nil
	}
	data := make([]byte, n)
	at := copy(data, head)
	_, err := io.ReadFull(io.NewSectionReader(b.spool, 0, b.spooled()), data[at:])
	return data, err
}

// reader returns a reader of the data read so far. It is called before the body is
// read.
func (b *Body) reader() io.Reader {
	head := bytes.NewReader(b.head.Bytes())
	if b.spool == nil {
		return head
	}
	return io.MultiReader(head, io.NewSectionReader(b.spool, 0, b.spooled()))
}

// Read reads the body from its beginning.
func (b *Body) Read(p []byte) (int, error) {
	if n, err := b.readAgain(p); n > 0 || err != nil || len(p) == 0 {
		return n, err
	}
	// No lock is held: a transport that gives up closes the body, to end a read that
	// waits for the client.
	return b.rest.Read(p)
}

// readAgain reads from the data that was read ahead.
func (b *Body) readAgain(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return 0, http.ErrBodyReadAfterClose
	case len(p) == 0:
		return 0, nil
	}
	if b.head != nil {
		n, _ = b.head.Read(p) // the end of head is not the end of the body
		if b.head.Len() > 0 || n > 0 && (b.spool != nil || len(b.tail) > 0) {
			return n, nil
		}
		b.dropHead()
	}
	if n == 0 && b.spool != nil {
		if n, err = b.spool.ReadAt(p, b.at); n > 0 {
			b.at += int64(n)
			return n, nil
		}
		b.closeSpool()
		if err != io.EOF {
			b.err = err // a disk error
		}
	}
	if n == 0 && len(b.tail) > 0 {
		n = copy(p, b.tail)
		b.tail = b.tail[n:]
		return n, nil
	}
	return n, b.err
}

// free frees the buffer and the file. The caller holds the lock.
func (b *Body) free() {
	if b.head != nil {
		b.dropHead()
	}
	b.closeSpool()
	b.tail = nil
}

func (b *Body) closeSpool() {
	if b.spool == nil {
		return
	}
	removeSpool(b.spool)
	b.spool = nil
}

// Close closes the original body, which ends a waiting read.
func (b *Body) Close() error {
	b.Release()
	return b.rest.Close()
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// largeBuffers are kept apart, because a small body would hold a large buffer for as long
// as its request takes.
var (
	largeBuffers = sync.Pool{New: func() any { return bytes.NewBuffer(make([]byte, 0, maxLarge+bytes.MinRead)) }}
	largePlaces  = make(chan struct{}, maxLargeBodies)
)

func getBuffer() *bytes.Buffer { return buffers.Get().(*bytes.Buffer) }

func putBuffer(b *bytes.Buffer) {
	if b.Cap() > maxPooled {
		return
	}
	b.Reset()
	buffers.Put(b)
}
