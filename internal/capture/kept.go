package capture

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"strings"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

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

// MaxDecoded is how far the encoded body of a result is decoded, in bytes, to learn its size: a few
// kilobytes can stand for terabytes. Beyond it the size is a lower bound.
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

// write never fails: the goroutine reads to the end.
func (f *inflow) write(p []byte) { _, _ = f.pipe.Write(p) }

func (f *inflow) end() (kept []byte, size int64, err error) {
	f.pipe.Close()
	<-f.done
	return f.kept.Bytes(), f.size, f.err
}

// maxKeptHeader bounds the header that is kept with a result, in bytes: it must
// fit in the task's record.
const maxKeptHeader = 32 << 10

// endToEnd returns the fields of the response's header that are its own and not
// the connection's (RFC 9110, section 7.6.1); of one that is too large to be kept
// only those without which the body cannot be read. The fields that describe the
// body are those of the handler, as is the body.
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
