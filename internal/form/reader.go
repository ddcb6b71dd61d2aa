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
	// maxCodings is how many content codings a body may have. One is usual, and each
	// needs a decoder, with its memory and processor time.
	maxCodings = 2

	// maxIdle is how many bytes more a decoder may read than it returns. Encoded data
	// is hardly ever larger than decoded data. But there are empty blocks, members and
	// frames, and a body of them would keep a core busy without reaching a limit on
	// the output. A zstd block of up to 128 KiB is read whole before anything is
	// returned.
	maxIdle = 512 << 10

	// maxWindow is how far back a zstd stream may refer, in bytes. Its decoder needs
	// as much memory, and a stream of a few bytes can ask for terabytes. RFC 9659 sets
	// this limit for content codings. Brotli's window is at most 16 MiB by its format,
	// that of gzip and deflate 32 KiB.
	maxWindow = 8 << 20

	// maxBetween is how many bytes one coding may pass to the next. Honest data between
	// two codings is about as large as the sent data. Without a bound, one coding could
	// expand to terabytes that the next decodes to nothing.
	maxBetween = 16 << 20

	// httpSpace is the optional whitespace of RFC 9110, section 5.6.3.
	httpSpace = " \t"
)

// ErrUnknownCoding is returned, wrapped, by [NewReader] for a content coding
// that it cannot decode.
var ErrUnknownCoding = errors.New("unknown content coding")

// ErrIdle is returned by Read if a body has far more encoded bytes than decoded
// ones.
var ErrIdle = errors.New("the encoded body has too many empty blocks")

var errTooLargeBetween = fmt.Errorf("more than %d bytes between two content codings", maxBetween)

// NewReader returns a reader that decodes the content codings of r. encodings is the
// value of Content-Encoding: gzip, x-gzip, deflate (with and without the zlib header
// that RFC 9110 demands: servers send both), zstd and br, in the order in which they
// were applied. Codings that [Codings] leaves out are ignored.
//
// Decoding is lazy: r is read only when the returned reader is. Read returns an error
// for corrupt data, and [io.ErrUnexpectedEOF] for data that ends early. Memory is
// bounded, output is not: the caller bounds how much it reads. The caller must call
// Close, which returns the decoders to a pool and does not close r.
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
	// The coding that was applied last is decoded first.
	for i, l := range slices.Backward(layers) {
		l.src, l.between, r = r, i > 0, l
	}
	if len(layers) == 0 {
		return io.NopCloser(r), nil
	}
	return layers, nil
}

// noCodings are values of Content-Encoding that leave a body unchanged: identity
// (RFC 9110), and mistakes that are seen in the wild, such as charsets.
var noCodings = []string{"", "identity", "none", "null", "utf-8", "utf8", "us-ascii", "ascii", "binary", "8bit", "7bit"}

// Codings returns the content codings in a Content-Encoding header, in lower case. It
// leaves out identity and values that are no codings, such as charsets.
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

// Known reports whether [NewReader] can decode a content coding.
func Known(coding string) bool { return codings[coding] != nil }

// decoder decodes one coding. Reset works after errors too.
type decoder interface {
	io.Reader
	Reset(io.Reader) error
}

// codings has a pool of decoders for each coding. A new decoder allocates 40 KB or
// more, which would be most of the work of decoding a small body.
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
		// Without this, a bytes.Buffer is decoded all at once.
		zstd.WithDecodeBuffersBelow(0),
	)
	return d
}

// layer decodes one of several codings.
type layer struct {
	decoders *sync.Pool
	src      io.Reader
	between  bool    // another layer reads this one
	taken    int64   // bytes read from src
	dec      decoder // nil before the first Read and after close
	size     int64   // bytes returned
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

// source is the input of a layer's decoder. It returns [ErrIdle] for a body of empty
// blocks.
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
	// Reset drops the reference to the source, which the pool must not keep. It
	// returns an error because nothing is empty.
	_ = l.dec.Reset(nothing{})
	l.decoders.Put(l.dec)
	l.dec = nil
}

var errClosed = errors.New("read after close")

// nothing is an empty source. It implements io.ByteReader too: the decoders then need
// no buffer.
type nothing struct{}

func (nothing) Read([]byte) (int, error) { return 0, io.EOF }
func (nothing) ReadByte() (byte, error)  { return 0, io.EOF }

// layers are the codings of a body in the order in which they were applied. The last
// one reads the body and is decoded first.
type layers []*layer

func (ls layers) Read(p []byte) (int, error) { return ls[0].Read(p) }

// Close returns the decoders to their pools. It may be called more than once.
func (ls layers) Close() error {
	for _, l := range ls {
		l.close()
	}
	return nil
}
