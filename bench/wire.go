package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
)

// The program that measures runs on the cores of what it measures. So it speaks
// just as much HTTP/1.1 as is needed: one buffer a connection, bodies with a
// length.

// conn is a client's keep-alive connection.
type conn struct {
	net.Conn
	r *bufio.Reader
}

func dial(addr string) (*conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReaderSize(c, 16<<10)}, nil
}

// do sends a request that is ready to be written, and reads the answer. It
// returns the status and the task's ID, if the answer has one.
func (c *conn) do(request []byte) (status int, id string, err error) {
	if _, err := c.Write(request); err != nil {
		return 0, "", err
	}
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return 0, "", err
	}
	if len(line) < 12 {
		return 0, "", fmt.Errorf("no status line: %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, "", fmt.Errorf("no status line: %q", line)
	}
	h, err := readHeader(c.r)
	if err != nil {
		return 0, "", err
	}
	if h.length < 0 {
		return 0, "", errors.New("the answer has no length")
	}
	_, err = c.r.Discard(h.length)
	return status, h.id, err
}

// header is what matters of one.
type header struct {
	length int    // of the body; -1 if it is not said
	id     string // beam-task-id
	expect bool   // Expect: 100-continue
}

func readHeader(r *bufio.Reader) (header, error) {
	h := header{length: -1}
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return h, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return h, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if h.length, err = strconv.Atoi(string(value)); err != nil {
				return h, err
			}
		case bytes.EqualFold(name, []byte("beam-task-id")):
			h.id = string(value)
		case bytes.EqualFold(name, []byte("expect")):
			h.expect = true
		}
	}
}

// post writes a POST request.
func post(host, path, contentType string, body []byte) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		path, host, contentType, len(body), body)
}

// ok is an answer.
func ok(contentType string, body []byte) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", contentType, len(body), body)
}

// peer is a server that answers every request with the same bytes.
type peer struct {
	addr string
	ln   net.Listener
	// onRequest, if set, is called when a request is whole, with its task's ID;
	// onAnswer when its answer is written.
	onRequest, onAnswer func(id string)

	mu     sync.Mutex
	answer []byte
	conns  map[net.Conn]bool
}

// serve listens on addr, 127.0.0.1:0 for any free port.
func serve(addr string, answer []byte) (*peer, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	s := &peer{addr: ln.Addr().String(), ln: ln, answer: answer, conns: make(map[net.Conn]bool)}
	go s.accept()
	return s, nil
}

func (s *peer) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		go s.handle(c)
	}
}

func (s *peer) handle(c net.Conn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	r := bufio.NewReaderSize(c, 16<<10)
	for {
		if _, err := r.ReadSlice('\n'); err != nil {
			return // the client hung up
		}
		h, err := readHeader(r)
		if err != nil {
			return
		}
		if _, err := r.Discard(max(h.length, 0)); err != nil {
			return
		}
		if s.onRequest != nil {
			s.onRequest(h.id)
		}
		s.mu.Lock()
		answer := s.answer
		s.mu.Unlock()
		if answer == nil { // it never answers
			_, _ = io.Copy(io.Discard, r)
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
		if s.onAnswer != nil {
			s.onAnswer(h.id)
		}
	}
}

func (s *peer) close() {
	s.ln.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}
