package send

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
)

// patientConn is a connection that delivers an answer even if the receiver closes
// before it has read the whole request. net/http gives up an attempt at the first write
// error, even if the answer has arrived, so patientConn delays such an error until
// everything that arrived has been read.
type patientConn struct {
	net.Conn
	read chan struct{} // closed when nothing more can be read
	once sync.Once
}

func newPatientConn(conn net.Conn) *patientConn {
	return &patientConn{Conn: conn, read: make(chan struct{})}
}

// Read implements [net.Conn].
func (c *patientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.end()
	}
	return n, err
}

// Write implements [net.Conn]. After an error it returns once Read has failed or the
// connection is closed. net/http always reads, and closes the connection when the
// attempt times out.
func (c *patientConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		<-c.read
	}
	return n, err
}

// Close implements [net.Conn].
func (c *patientConn) Close() error {
	c.end()
	return c.Conn.Close()
}

func (c *patientConn) end() { c.once.Do(func() { close(c.read) }) }

const (
	// piece is how many bytes net/http gets at a time. net/http writes bytes that it
	// has read beyond an answer to the process's log, and no option turns that off: a
	// receiver that echoes would put the callback's body there. piece bounds what is
	// logged.
	piece = 16
	// readAhead is the size of the buffer that saves a system call for each piece.
	readAhead = 2 << 10
)

// quietConn is an HTTP/1 connection that ends when the receiver sends unsolicited data:
// before the first request, or while the connection is kept for the next one. Without
// it, net/http closes the connection too, but quotes the data in the process's log.
type quietConn struct {
	net.Conn
	remote  string // the address, as text
	buffer  []byte
	unread  []byte
	written atomic.Bool
	// requests counts the requests that use the connection. The hook that ends one
	// request can run after the hook that begins the next.
	requests atomic.Int64
}

func newQuietConn(conn net.Conn) *quietConn {
	return &quietConn{Conn: conn, remote: conn.RemoteAddr().String(), buffer: make([]byte, readAhead)}
}

// Read implements [net.Conn]. Only one goroutine calls it.
func (c *quietConn) Read(p []byte) (int, error) {
	if len(c.unread) == 0 {
		n, err := c.Conn.Read(c.buffer)
		c.unread = c.buffer[:n]
		if n == 0 {
			return 0, err // the next read returns an error that came with bytes
		}
	}
	if !c.written.Load() || c.requests.Load() < 1 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), piece)], c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

// Write implements [net.Conn].
func (c *quietConn) Write(p []byte) (int, error) {
	c.written.Store(true)
	return c.Conn.Write(p)
}
