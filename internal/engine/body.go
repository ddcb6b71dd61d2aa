package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// InMemory returns a body that is in memory.
func InMemory(body []byte) io.ReadSeekCloser { return inMemory{bytes.NewReader(body)} }

type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

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
