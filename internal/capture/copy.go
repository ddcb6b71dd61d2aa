package capture

import (
	"bytes"
	"io"
	"os"
)

// Copy is the captured body of a response, in memory or in a file. It belongs to its
// caller, who closes it. Nil is an empty copy.
type Copy struct {
	bytes []byte
	file  *os.File // nil if the copy is in memory
	size  int64

	reader bytes.Reader // of bytes
}

// Reader returns a reader of the whole copy. It may be called again, until Close; that
// ends the previous reader.
func (c *Copy) Reader() io.Reader {
	switch {
	case c == nil:
		return bytes.NewReader(nil)
	case c.file != nil:
		return io.NewSectionReader(c.file, 0, c.size)
	}
	c.reader.Reset(c.bytes)
	return &c.reader
}

// Head returns the first n bytes of the copy, or all of a shorter one. If the file cannot
// be read, it returns fewer. The bytes must not be changed.
func (c *Copy) Head(n int64) []byte {
	switch {
	case c == nil:
		return nil
	case c.file == nil:
		return c.bytes[:min(n, c.size)]
	}
	head, _ := io.ReadAll(io.NewSectionReader(c.file, 0, min(n, c.size)))
	return head
}

// Size returns the length of the copy in bytes.
func (c *Copy) Size() int64 {
	if c == nil {
		return 0
	}
	return c.size
}

// Close removes the file, if there is one. It may be called twice.
func (c *Copy) Close() {
	if c != nil && c.file != nil {
		removeSpool(c.file)
		c.file, c.size = nil, 0
	}
}

// wholeBody keeps a whole body that is longer than the limit in a file, as sent.
type wholeBody struct {
	folder string
	max    int64 // bytes; no more are kept. 0 means that nothing is
	file   *os.File
	failed bool
}

// write adds p. before is the body up to p; it is read by the first write only. If the
// file cannot be written or the body, now of the given size, is too long, nothing is
// kept any more: then the receiver gets its beginning.
func (b *wholeBody) write(before, p []byte, size int64) {
	if b.failed || b.max == 0 {
		return
	}
	var err error
	if b.file == nil && size <= b.max {
		if b.file, err = newSpool(b.folder); err == nil {
			_, err = b.file.Write(before)
		}
	}
	if err == nil && size <= b.max {
		_, err = b.file.Write(p)
	}
	if err != nil || size > b.max {
		b.discard()
		b.failed = true
	}
}

// take returns the file and forgets it.
func (b *wholeBody) take() *os.File {
	f := b.file
	b.file = nil
	return f
}

func (b *wholeBody) discard() {
	if f := b.take(); f != nil {
		removeSpool(f)
	}
}

// removeSpool closes and removes a file that newSpool created.
func removeSpool(f *os.File) {
	_ = f.Close()           // the data is not needed any more
	_ = os.Remove(f.Name()) // usually it is removed already
}
