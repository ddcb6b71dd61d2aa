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
	// Head describes the body, which it does not hold.
	Head form.Callback
	Size int64 // in bytes

	content []byte
	file    *file // nil if it is in memory
	release func()
	reserve func(context.Context) (func(), error)
	once    sync.Once
}

// inMemory returns a body that is in memory.
func (e *Encoder) inMemory(cb form.Callback) *Body {
	b := &Body{content: cb.Body, Size: int64(len(cb.Body))}
	cb.Body = nil
	b.Head = cb
	e.files.used.Add(b.Size)
	b.release = func() { e.files.used.Add(-b.Size) }
	return b
}

// Open returns a reader of the whole body. It may be called again, also while
// other readers are open, until Release.
func (b *Body) Open() (io.ReadCloser, error) {
	if b.file == nil {
		return io.NopCloser(bytes.NewReader(b.content)), nil
	}
	return b.file.open()
}

// InFile reports whether the body is in a file.
func (b *Body) InFile() bool { return b.file != nil }

// Reserve waits until the whole of a body that is in a file may be read into
// memory, and returns what ends that. Encodings wait meanwhile.
func (b *Body) Reserve(ctx context.Context) (free func(), err error) {
	if b.file == nil {
		return func() {}, nil
	}
	return b.reserve(ctx)
}

// Release ends the use of the body. Readers that are open can be read to their
// end. It may be called twice.
func (b *Body) Release() { b.once.Do(b.release) }

// reader is an open file that its body's file outlives.
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
