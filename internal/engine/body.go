package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// InMemory returns a body that is in memory. Its method Bytes returns the whole body, so
// that a caller that needs all of it needs no copy. The bytes must not be changed.
func InMemory(body []byte) io.ReadSeekCloser {
	return &inMemory{Reader: *bytes.NewReader(body), body: body}
}

type inMemory struct {
	bytes.Reader
	body []byte
}

func (b *inMemory) Bytes() []byte { return b.body }

func (*inMemory) Close() error { return nil }

// Position returns the position that a body of the given size has after Seek was called
// at position at.
func Position(at, size, offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += at
	case io.SeekEnd:
		offset += size
	default:
		return at, fmt.Errorf("seeking in a body: whence %d is unknown", whence)
	}
	if offset < 0 {
		return at, errors.New("seeking in a body: the position is negative")
	}
	return offset, nil
}
