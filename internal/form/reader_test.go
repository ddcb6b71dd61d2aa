package form_test

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/caddy-callback/caddy-callback/internal/form"
)

// flusher compresses. Data written before Flush can be decoded after it.
type flusher interface {
	io.WriteCloser
	Flush() error
}

// compressors has one for each coding, and for deflate both that go by its name.
var compressors = map[string]func(io.Writer) flusher{
	"gzip":        func(w io.Writer) flusher { return gzip.NewWriter(w) },
	"x-gzip":      func(w io.Writer) flusher { return gzip.NewWriter(w) },
	"deflate":     func(w io.Writer) flusher { return zlib.NewWriter(w) },
	"raw deflate": func(w io.Writer) flusher { fw, _ := flate.NewWriter(w, 6); return fw },
	"br":          func(w io.Writer) flusher { return brotli.NewWriter(w) },
	"zstd": func(w io.Writer) flusher {
		zw, _ := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true))
		return zw
	},
}

// encode applies codings in the order in which a Content-Encoding lists them.
func encode(t testing.TB, codings string, data []byte) []byte {
	t.Helper()
	for coding := range strings.SplitSeq(codings, ",") {
		var buf bytes.Buffer
		w := compressors[strings.TrimSpace(coding)](&buf)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		data = buf.Bytes()
	}
	return data
}

// header turns the name of a compressor into the name of its coding.
func header(codings string) string { return strings.ReplaceAll(codings, "raw ", "") }

// decodeAll decodes data with NewReader.
func decodeAll(encodings string, data io.Reader) ([]byte, error) {
	r, err := form.NewReader(encodings, data)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestNewReaderUndoesEachCoding(t *testing.T) {
	t.Parallel()
	large := make([]byte, 300_000) // more than one buffer, window and block
	rand.NewChaCha8([32]byte{}).Read(large[:100_000])
	for _, codings := range []string{
		"gzip", "x-gzip", "deflate", "raw deflate", "br", "zstd",
		"gzip, br", "br, gzip", "raw deflate, zstd",
	} {
		for name, want := range map[string][]byte{
			"nothing": {}, "a byte": []byte("a"), "text": []byte("Grüße, Jürgen"), "much": large,
		} {
			t.Run(codings+" of "+name, func(t *testing.T) {
				t.Parallel()
				data := encode(t, codings, want)
				for _, src := range []io.Reader{
					bytes.NewReader(data), bytes.NewBuffer(data), iotest.OneByteReader(bytes.NewReader(data)),
					iotest.DataErrReader(bytes.NewReader(data)),
				} {
					got, err := decodeAll(header(codings), src)
					if err != nil || !bytes.Equal(got, want) {
						t.Errorf("from a %T: %s, %v", src, excerpt(got), err)
					}
				}
			})
		}
	}
}

func TestNewReaderAcceptsLenientHeader(t *testing.T) {
	t.Parallel()
	data := encode(t, "gzip, br", []byte("text"))
	for _, encodings := range []string{"gzip,br", "GZip , BR", "gzip,\tbr", ",gzip,,br,", "identity, gzip, identity, br"} {
		if got, err := decodeAll(encodings, bytes.NewReader(data)); string(got) != "text" || err != nil {
			t.Errorf("%q: %q, %v", encodings, got, err)
		}
	}
	for _, encodings := range []string{"", " ", ",", "identity", "Identity, identity", "none", "UTF-8", "utf8, identity", "binary"} {
		if got, err := decodeAll(encodings, strings.NewReader("text")); string(got) != "text" || err != nil {
			t.Errorf("%q: %q, %v", encodings, got, err)
		}
	}
}

func TestNewReaderRefusesUnknownCodings(t *testing.T) {
	t.Parallel()
	for _, encodings := range []string{"compress", "gzip, compress", "utf-16", "gzip;q=1", "dcb", "gz ip"} {
		if r, err := form.NewReader(encodings, nil); r != nil || !errors.Is(err, form.ErrUnknownCoding) {
			t.Errorf("%q: error is %v", encodings, err)
		}
	}
	if _, err := form.NewReader("gzip,gzip", nil); err != nil {
		t.Error(err)
	}
	if _, err := form.NewReader("gzip,gzip,gzip", nil); err == nil {
		t.Error("three codings are not refused")
	}
}

// TestNewReaderStreams wants each piece of a body before the next is there: the
// pipe has no buffer, so a reader that waits for more would wait for ever.
func TestNewReaderStreams(t *testing.T) {
	t.Parallel()
	for coding, compressor := range compressors {
		t.Run(coding, func(t *testing.T) {
			t.Parallel()
			src, dst := io.Pipe()
			defer src.Close()
			read := make(chan struct{})
			go func() {
				w := compressor(dst)
				for _, piece := range []string{"first", "second"} {
					_, _ = io.WriteString(w, piece) // the reader finds out
					_ = w.Flush()
					<-read
				}
				w.Close()
				dst.Close()
			}()
			r, err := form.NewReader(header(coding), src)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for _, piece := range []string{"first", "second"} {
				got := make([]byte, len(piece))
				if _, err := io.ReadFull(r, got); string(got) != piece || err != nil {
					t.Fatalf("%q, %v", got, err)
				}
				read <- struct{}{}
			}
			if rest, err := io.ReadAll(r); len(rest) != 0 || err != nil {
				t.Errorf("%q after the end, %v", rest, err)
			}
		})
	}
}

func TestNewReaderErrors(t *testing.T) {
	t.Parallel()
	random := make([]byte, 50_000)
	rand.NewChaCha8([32]byte{}).Read(random)
	broken := errors.New("connection reset")
	for coding := range compressors {
		t.Run(coding, func(t *testing.T) {
			t.Parallel()
			data := encode(t, coding, random)
			for _, n := range []int{1, 2, 5, 20_000, len(data) - 1} {
				got, err := decodeAll(header(coding), bytes.NewReader(data[:n]))
				if !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.HasPrefix(random, got) {
					t.Errorf("cut at %d: error is %v", n, err)
				}
			}
			if _, err := decodeAll(header(coding), iotest.ErrReader(broken)); !errors.Is(err, broken) {
				t.Errorf("the source's error became %v", err)
			}
			late := io.MultiReader(bytes.NewReader(data[:20_000]), iotest.ErrReader(broken))
			if _, err := decodeAll(header(coding), late); !errors.Is(err, broken) {
				t.Errorf("the source's late error became %v", err)
			}
			// A decoder that has met an error serves the next reader as well.
			if got, err := decodeAll(header(coding), bytes.NewReader(data)); !bytes.Equal(got, random) || err != nil {
				t.Errorf("after errors: %s, %v", excerpt(got), err)
			}
		})
	}
}

func TestNewReaderRefusesLargeWindow(t *testing.T) {
	t.Parallel()
	for name, frame := range map[string]string{
		"a window of 1 GiB":             "28b52ffd 00 a0 030000 00",
		"a single segment of 16 MiB":    "28b52ffd a0 00000001 030000 00",
		"a single segment of exabytes":  "28b52ffd e0 ffffffffffffff0f 030000 00",
		"a window just above the limit": "28b52ffd 00 69 030000 00",
	} {
		data, err := hex.DecodeString(strings.ReplaceAll(frame, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		_, err = decodeAll("zstd", bytes.NewReader(data))
		if !errors.Is(err, zstd.ErrWindowSizeExceeded) && !errors.Is(err, zstd.ErrDecoderSizeExceeded) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

func TestNewReaderBoundsIntermediateData(t *testing.T) {
	t.Parallel()
	// The gzip expands to 70 MB of zstd frames to be skipped, and these to nothing:
	// the decoded data never grows.
	skipped := append([]byte("\x50\x2a\x4d\x18\x40\x42\x0f\x00"), make([]byte, 1_000_000)...)
	bomb := repeated(t, "gzip", skipped, 70)
	got, err := decodeAll("zstd, gzip", bytes.NewReader(bomb))
	if len(got) != 0 || err == nil { // not which: zstd makes its own of it
		t.Errorf("70 MB: %d bytes, %v", len(got), err)
	}
}

// Decoding ends with an error after half a megabyte of empty blocks, members or frames.
func TestNewReaderEndsOnEmptyBlocks(t *testing.T) {
	t.Parallel()
	skipped := append([]byte("\x50\x2a\x4d\x18\x00\x04\x00\x00"), make([]byte, 1024)...)
	for name, tt := range map[string]struct {
		coding string
		begin  []byte
		unit   []byte
	}{
		"empty members of gzip":           {"gzip", nil, encode(t, "gzip", nil)},
		"empty frames of zstd":            {"zstd", nil, encode(t, "zstd", nil)},
		"skippable frames of zstd":        {"zstd", nil, skipped},
		"empty blocks of zstd":            {"zstd", []byte("\x28\xb5\x2f\xfd\x00\x58"), []byte("\x00\x00\x00")},
		"empty blocks of deflate":         {"deflate", nil, []byte("\x00\x00\x00\xff\xff")},
		"empty metadata blocks of brotli": {"br", []byte("\x0c"), []byte("\x06")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src := &counted{r: io.MultiReader(bytes.NewReader(tt.begin), &endless{unit: tt.unit})}
			got, err := decodeAll(tt.coding, io.LimitReader(src, 64<<20))
			if len(got) != 0 || err == nil {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if src.n > 2<<20 {
				t.Errorf("%d bytes were read", src.n)
			}
		})
	}
}

// endless reads the same bytes again and again.
type endless struct {
	unit []byte
	at   int
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.unit[e.at]
		e.at = (e.at + 1) % len(e.unit)
	}
	return len(p), nil
}

type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func TestReaderAfterClose(t *testing.T) {
	t.Parallel()
	data := encode(t, "gzip", []byte("text"))
	r, err := form.NewReader("gzip", bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d bytes after close, %v", n, err)
	}
}

// repeated returns encoded data that decodes to many repetitions of data. gzip and zstd
// data can be concatenated, so it encodes only once.
func repeated(t testing.TB, coding string, data []byte, times int) []byte {
	return bytes.Repeat(encode(t, coding, data), times)
}
