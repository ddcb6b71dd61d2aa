package form

import (
	"bufio"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zlib"
)

// inflater decodes the coding deflate. RFC 9110 defines it as zlib data (RFC 1950);
// some servers send bare DEFLATE data (RFC 1951). As browsers do, inflater reads both
// and tells them apart by the first two bytes.
type inflater struct {
	src  *bufio.Reader
	zlib io.ReadCloser // nil until there was zlib data; also a zlib.Resetter
	bare io.ReadCloser // nil until there was bare data; also a flate.Resetter
	cur  io.Reader     // the one of them that is in use
}

func (i *inflater) Reset(r io.Reader) (err error) {
	if i.src == nil {
		i.src = bufio.NewReader(r)
	} else {
		i.src.Reset(r)
	}
	header, err := i.src.Peek(2)
	if err == io.EOF {
		return io.ErrUnexpectedEOF // both have at least two bytes
	}
	if err != nil {
		return err
	}
	switch isZlib := isZlibHeader(header[0], header[1]); {
	case isZlib && i.zlib == nil:
		i.zlib, err = zlib.NewReader(i.src)
		i.cur = i.zlib
	case isZlib:
		err = i.zlib.(zlib.Resetter).Reset(i.src, nil)
		i.cur = i.zlib
	case i.bare == nil:
		i.bare = flate.NewReader(i.src)
		i.cur = i.bare
	default:
		err = i.bare.(flate.Resetter).Reset(i.src, nil)
		i.cur = i.bare
	}
	return err
}

func (i *inflater) Read(p []byte) (int, error) { return i.cur.Read(p) }

// isZlibHeader reports whether two bytes begin zlib data: the method is 8, the
// window at most 32 KiB, and the check is right (RFC 1950, section 2.2). Bare data
// begins with these bytes only if it is a stored block with invalid padding.
func isZlibHeader(cmf, flg byte) bool {
	return cmf&0x0f == 8 && cmf>>4 <= 7 && (uint(cmf)<<8|uint(flg))%31 == 0
}
