package sqlite

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// logHeader is the size of the header of a write-ahead log.
const logHeader = 32

// logReader reads a write-ahead log as SQLite's recovery does. It continues where
// SQLite stops.
type logReader struct {
	order binary.ByteOrder
	salts [8]byte
	a, b  uint32 // the checksum so far
}

// lostCommits returns how many commits follow a damaged frame in a write-ahead log.
// SQLite takes the first frame with a wrong checksum for the end of the log, as it must
// after a crash, and reports no error. A commit is only written after the previous one
// is durable. A commit that begins after the break therefore proves damage rather than
// a crash.
func lostCommits(name string) (int, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	header := make([]byte, logHeader)
	if _, err := io.ReadFull(in, header); err != nil {
		return 0, ignoreEnd(err)
	}
	l := &logReader{order: binary.LittleEndian, salts: [8]byte(header[16:24])}
	if header[3]&1 == 1 {
		l.order = binary.BigEndian
	}
	l.a, l.b = sumWords(l.order, 0, 0, header[:24])
	broken := !l.matches(header[24:])
	if first, err := in.Peek(16); err == nil && broken {
		l.salts = [8]byte(first[8:])
	}
	frame := make([]byte, frameHeader+pageSize)
	commits, inside := 0, broken
	for {
		if _, err := io.ReadFull(in, frame); err != nil {
			return commits, ignoreEnd(err)
		}
		ends := binary.BigEndian.Uint32(frame[4:]) != 0
		switch valid := l.next(frame); {
		case !valid: // a crash may have torn the commit of this frame
			broken, inside = true, !ends
		case inside:
			inside = !ends
		case broken && ends:
			commits++
		}
	}
}

// next adds a frame to the checksum, and continues with the checksum that the frame
// has.
func (l *logReader) next(frame []byte) (valid bool) {
	a, b := sumWords(l.order, l.a, l.b, frame[:8])
	l.a, l.b = sumWords(l.order, a, b, frame[frameHeader:])
	valid = l.matches(frame[16:24]) && [8]byte(frame[8:16]) == l.salts
	l.a, l.b = binary.BigEndian.Uint32(frame[16:]), binary.BigEndian.Uint32(frame[20:])
	return valid
}

func (l *logReader) matches(sum []byte) bool {
	return l.a == binary.BigEndian.Uint32(sum) && l.b == binary.BigEndian.Uint32(sum[4:])
}

func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fmt.Errorf("reading the log: %w", err)
}

// sumWords adds data to SQLite's checksum: two sums over words, each added to the
// other.
func sumWords(order binary.ByteOrder, a, b uint32, data []byte) (uint32, uint32) {
	for i := 0; i < len(data); i += 8 {
		a += order.Uint32(data[i:]) + b
		b += order.Uint32(data[i+4:]) + a
	}
	return a, b
}
