package encode

import (
	"bytes"
	"context"
	"io"
	"os"
	"sync"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

// Body is the body of a callback, in memory or in a file.
type Body struct {
	// Head describes the body, without its content.
	Head form.Callback
	Size int64 // in bytes

	content []byte
	file    *file // nil if the body is in memory
	files   *files
	reserve func(context.Context) (func(), error)
	once    sync.Once
}

// inMemory returns a body in memory.
func (e *Encoder) inMemory(cb form.Callback) *Body {
	b := &Body{content: cb.Body, Size: int64(len(cb.Body)), files: &e.files}
	cb.Body = nil
	b.Head = cb
	e.files.used.Add(b.Size)
	return b
}

// Open returns a reader of the whole body. It may be called several times until
// Release, also while other readers are open.
func (b *Body) Open() (io.ReadCloser, error) {
	if b.file == nil {
		// net/http knows this type. It would send the header of a request whose body has
		// any other type in a packet of its own.
		return io.NopCloser(bytes.NewReader(b.content)), nil
	}
	return b.file.open()
}

// InFile reports whether the body is in a file.
func (b *Body) InFile() bool { return b.file != nil }

// Reserve waits until a body in a file may be read into memory as a whole. Its memory
// counts against the budget of the encodings until free is called.
func (b *Body) Reserve(ctx context.Context) (free func(), err error) {
	if b.file == nil {
		return func() {}, nil
	}
	return b.reserve(ctx)
}

// Release ends the use of the body. Open readers can still be read to their end.
// Release may be called twice.
func (b *Body) Release() {
	b.once.Do(func() {
		if b.file == nil {
			b.files.used.Add(-b.Size)
		} else {
			b.files.leave(b.file)
		}
	})
}

// reader is an open file. The file is kept until the reader is closed.
type reader struct {
	*os.File
	file *file
	once sync.Once
}

// Close implements [io.Closer]. It may be called twice.
func (r *reader) Close() (err error) {
	r.once.Do(func() {
		err = r.File.Close()
		r.file.owner.leave(r.file)
	})
	return err
}
