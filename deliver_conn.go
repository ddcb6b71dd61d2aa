package callback

import (
	"errors"
	"net"
	"os"
	"sync"
)

// patientConn is a connection on which an answer counts though the receiver has
// closed before it read the whole request. net/http gives an attempt up at the
// first error of a write, even if the answer has arrived. So such an error is held
// back until everything that arrived has been read.
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

// Write implements [net.Conn]. After an error it returns once Read has failed or
// the connection is closed; net/http always reads, and closes when the attempt's
// time is over.
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
