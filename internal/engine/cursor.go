package engine

import (
	"fmt"
	"hash/crc32"
	"strings"
)

// Cursor is the position at which a list continues. It is opaque and printable, and
// empty at the start and after the end. Clients send cursors back. For a cursor that it
// did not return, a list returns ErrCursor or, if another list returned it, an arbitrary
// page. It has no other effect.
type Cursor string

// NewCursor returns the cursor of a position. Its checksum detects a cursor that was cut
// or changed: a damaged position would look like another page, or like the end.
func NewCursor(position string) Cursor {
	return Cursor(fmt.Sprintf("%s.%08x", position, crc32.ChecksumIEEE([]byte(position))))
}

// Position returns the position of a cursor. It is empty for an empty cursor. Position
// returns ErrCursor if the cursor is damaged.
func (c Cursor) Position() (string, error) {
	if c == "" {
		return "", nil
	}
	position := string(c[:max(0, strings.LastIndexByte(string(c), '.'))])
	if NewCursor(position) != c {
		return "", fmt.Errorf("%w: %q", ErrCursor, c)
	}
	return position, nil
}
