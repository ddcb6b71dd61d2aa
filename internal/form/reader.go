package form

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxCodings is how many content codings may lie over each other. One is
	// usual, and each takes a decoder with its memory and its time.
	maxCodings = 2

	// maxIdle is how many bytes more a decoder may take than it returns. What is
	// encoded is hardly ever larger than what it stands for. But there are blocks,
	// members and frames that stand for nothing, and a body of them would keep a
	// core busy while the limits of the reader see nothing. A block of zstd is 128 KiB, and
	// is read whole before anything is returned.
	maxIdle = 512 << 10

	// maxWindow is how far back a zstd stream may refer, in bytes, which is
	// memory that its decoder must have. RFC 9659 sets it for content codings; a
	// stream of a few bytes can ask for terabytes. Brotli's is 16 MiB by its
	// format, gzip's and deflate's 32 KiB.
	maxWindow = 8 << 20

	// maxBetween is how many bytes one coding may hand to the next. What stands
	// between them is encoded data, about as large as what came over the wire.
	// Without an end, one coding could expand to terabytes that the next decodes to
	// nothing.
	maxBetween = 16 << 20

	// httpSpace is the optional whitespace of RFC 9110, section 5.6.3.
	httpSpace = " \t"
)

// ErrUnknownCoding is returned, wrapped, by [NewReader] for a content coding
// that it cannot undo.
var ErrUnknownCoding = errors.New("unknown content coding")

// ErrIdle is returned by Read if far more is read than is decoded.
var ErrIdle = errors.New("the content coding has too much that stands for nothing")

var errTooLargeBetween = fmt.Errorf("more than %d bytes between two content codings", maxBetween)

// NewReader returns a reader of r without its content codings. They are given as
// the Content-Encoding header lists them, in the order in which they were
// applied: gzip, x-gzip, deflate (with and without the zlib header that RFC 9110
// asks for: servers send both), zstd and br. An empty list is none, and so are the
// words that [Codings] leaves out.
//
// It decodes as it is read, and reads r first when it is first read. Data that
// is corrupt or that ends too early ([io.ErrUnexpectedEOF]) is an error of Read.
// Its memory is bounded, its output is not: the caller bounds what is read. The
// caller must call Close, which gives the decoders back and does not close r.
func NewReader(encodings string, r io.Reader) (io.ReadCloser, error) {
	var layers layers
	for _, encoding := range Codings(encodings) {
		decoders := codings[encoding]
		if decoders == nil {
			return nil, fmt.Errorf("%w %q", ErrUnknownCoding, encoding)
		}
		if len(layers) == maxCodings {
			return nil, fmt.Errorf("more than %d content codings", maxCodings)
		}
		layers = append(layers, &layer{decoders: decoders})
	}
	// What was applied last is undone first.
	for i, l := range slices.Backward(layers) {
		l.src, l.between, r = r, i > 0, l
	}
	if len(layers) == 0 {
		return io.NopCloser(r), nil
	}
	return layers, nil
}

// noCodings are what clients and servers write into Content-Encoding if there is
// none: identity, as RFC 9110 has it, and what they take for one.
var noCodings = []string{"", "identity", "none", "null", "utf-8", "utf8", "us-ascii", "ascii", "binary", "8bit", "7bit"}

// Codings returns the content codings that a Content-Encoding header lists, in
// lower case. It leaves out those that leave a body as it is, such as identity, and
// charsets, which are none.
func Codings(encodings string) []string {
	var list []string
	for encoding := range strings.SplitSeq(encodings, ",") {
		encoding = strings.ToLower(strings.Trim(encoding, httpSpace))
		if !slices.Contains(noCodings, encoding) {
			list = append(list, encoding)
		}
	}
	return list
}

// Known reports whether [NewReader] can undo a content coding.
func Known(coding string) bool { return codings[coding] != nil }

// decoder undoes one coding. Reset makes it as good as new, whatever it has met.
type decoder interface {
	io.Reader
	Reset(io.Reader) error
}

// codings has the decoders of each coding. They are kept, for one is 40 KB and
// more, which is most of the work of decoding a small body.
var codings = func() map[string]*sync.Pool {
	gzips := &sync.Pool{New: func() any { return new(gzip.Reader) }}
	return map[string]*sync.Pool{
		"gzip":    gzips,
		"x-gzip":  gzips, // RFC 9110, section 8.4.1.3
		"deflate": {New: func() any { return new(inflater) }},
		"br":      {New: func() any { return new(brotli.Reader) }},
		"zstd":    {New: func() any { return newZstd() }},
	}
}()

func newZstd() *zstd.Decoder {
	d, _ := zstd.NewReader(nil, // errors are only for options out of range
		zstd.WithDecoderConcurrency(1), // decodes in Read, without goroutines
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow),
		// Decode a bytes.Buffer, too, as it is read, not all at once.
		zstd.WithDecodeBuffersBelow(0),
	)
	return d
}

// layer undoes one of several codings.
type layer struct {
	decoders *sync.Pool
	src      io.Reader
	between  bool    // another layer reads this one
	taken    int64   // what was read of src, in bytes
	dec      decoder // nil before the first Read and after close
	size     int64   // what it has returned, in bytes
	err      error   // that of the last Read, to be returned again
}

func (l *layer) Read(p []byte) (n int, err error) {
	if l.err != nil {
		return 0, l.err
	}
	if l.dec == nil {
		l.dec = l.decoders.Get().(decoder)
		l.err = l.dec.Reset(source{l})
	}
	if l.err == nil {
		n, l.err = l.dec.Read(p)
		l.size += int64(n)
	}
	if l.between && l.size > maxBetween {
		l.err = errTooLargeBetween
	}
	return n, l.err
}

// source is what a layer's decoder reads. It ends the decoding of what stands for
// nothing.
type source struct{ *layer }

func (s source) Read(p []byte) (int, error) {
	if s.taken > s.size+maxIdle {
		return 0, ErrIdle
	}
	n, err := s.src.Read(p)
	s.taken += int64(n)
	return n, err
}

func (l *layer) close() {
	l.err = errClosed
	if l.dec == nil {
		return
	}
	// The error is that there is nothing to decode. What counts is that the pool
	// does not keep the source.
	_ = l.dec.Reset(nothing{})
	l.decoders.Put(l.dec)
	l.dec = nil
}

var errClosed = errors.New("read after close")

// nothing is an empty source. It is an io.ByteReader, too, for which the decoders
// need no buffer.
type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }
func (nothing) ReadByte() (byte, error)  { return 0, io.EOF }

// layers are the codings of a body in the order in which they were applied. The
// first one undone is the last, and what it reads is the body.
type layers []*layer

func (ls layers) Read(p []byte) (int, error) { return ls[0].Read(p) }

// Close gives the decoders back. It may be called more than once.
func (ls layers) Close() error {
	for _, l := range ls {
		l.close()
	}
	return nil
}
