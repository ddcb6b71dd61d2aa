package capture

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

// keptBody keeps the beginning of the body that is written to it. It decodes an encoded
// body that is longer than the limit, so that it keeps the beginning of the content and
// not of its encoding. It can also keep such a body whole, in a file.
type keptBody struct {
	coding string
	limit  int64
	asSent bool  // do not decode
	size   int64 // as sent
	kept   []byte
	inflow *inflow
	large  wholeBody
	taken  Copy
}

func (b *keptBody) write(p []byte) {
	b.size += int64(len(p))
	if b.size > b.limit {
		b.large.write(b.kept, p, b.size)
	}
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

// take returns the kept data, the size of the whole body, and the coding of both. It
// ends the decoder; nothing may be written afterwards.
func (b *keptBody) take() (kept *Copy, size int64, coding string) {
	var decoded []byte
	err := errNotDecoded
	if b.inflow != nil {
		decoded, size, err = b.inflow.end()
	}
	switch whole := b.large.take(); {
	case whole != nil:
		b.taken = Copy{file: whole, size: b.size}
		return &b.taken, b.size, b.coding
	case err == nil:
		b.taken = Copy{bytes: decoded, size: int64(len(decoded))}
		return &b.taken, size, ""
	}
	b.taken = Copy{bytes: b.kept, size: int64(len(b.kept))}
	return &b.taken, b.size, b.coding
}

var errNotDecoded = errors.New("the body was not decoded")

// inflow decodes written data in a goroutine of its own.
type inflow struct {
	pipe *io.PipeWriter
	done chan struct{}
	kept bytes.Buffer
	size int64
	err  error
}

// MaxDecoded is how much of an encoded result is decoded to determine its size, in
// bytes. A few kilobytes can expand to terabytes. Beyond it the size is a lower bound.
const MaxDecoded = 64 << 20

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
	more, err := io.CopyN(io.Discard, reader, MaxDecoded)
	f.size += more
	if err == io.EOF {
		return nil
	}
	return err
}

// write never fails, because the goroutine reads to the end.
func (f *inflow) write(p []byte) { _, _ = f.pipe.Write(p) }

func (f *inflow) end() (kept []byte, size int64, err error) {
	f.pipe.Close()
	<-f.done
	return f.kept.Bytes(), f.size, f.err
}

// maxKeptHeader bounds the stored header of a result, in bytes. It must fit in the
// task's record.
const maxKeptHeader = 32 << 10

// endToEnd returns the end-to-end fields of the response's header (RFC 9110, section
// 7.6.1). If they are too large, it returns only the fields needed to read the body.
// The fields that describe the body are those that the handler wrote.
func (c *Response) endToEnd() http.Header {
	kept := maps.Clone(c.header)
	if c.begun {
		for _, name := range bodyFields {
			delete(kept, name)
		}
		maps.Copy(kept, c.own)
	}
	size := 0
	for name, values := range kept {
		for _, value := range values {
			size += len(name) + len(value)
		}
	}
	if size > maxKeptHeader {
		maps.DeleteFunc(kept, func(name string, values []string) bool {
			needed := name == "Content-Type" || name == "Content-Encoding"
			return !needed || len(strings.Join(values, "")) > maxKeptField
		})
	}
	for _, line := range kept["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			delete(kept, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	for _, name := range hopFields {
		delete(kept, name)
	}
	return kept
}

// hopFields are the header fields that are not end-to-end, or not true of a stored body.
var hopFields = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length",
}

// maxKeptField bounds the stored content type and codings of a result, in bytes. They
// must fit in the task's record.
const maxKeptField = 1 << 10

// head returns the first n bytes of s.
func head(s string, n int) string { return s[:min(len(s), n)] }
