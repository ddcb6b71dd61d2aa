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

// This program shares the cores with the gateway that it measures. So it implements only
// the part of HTTP/1.1 that it needs: one buffer per connection, and bodies with a
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

// do writes a prepared request and reads the response. It returns the status, and the
// task's ID if the response has one.
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

// header has the header fields that the program needs.
type header struct {
	length int    // of the body; -1 if unknown
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

// post returns a POST request.
func post(host, path, contentType string, body []byte) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s",
		path, host, contentType, len(body), body)
}

// ok returns a response with status 200.
func ok(contentType string, body []byte) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", contentType, len(body), body)
}

// peer is a server that sends the same response to every request.
type peer struct {
	addr string
	ln   net.Listener
	// onRequest, if set, is called with the task's ID when a request is complete, and
	// onAnswer when its response is written.
	onRequest, onAnswer func(id string)

	mu     sync.Mutex
	answer []byte
	seen   [2]func(id string) // as onRequest and onAnswer, but may change; see observe
	conns  map[net.Conn]bool
}

// serve starts a peer on addr. 127.0.0.1:0 means any free port.
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
			return // the client disconnected
		}
		h, err := readHeader(r)
		if err != nil {
			return
		}
		if _, err := r.Discard(max(h.length, 0)); err != nil {
			return
		}
		s.mu.Lock()
		answer, seen := s.answer, s.seen
		s.mu.Unlock()
		if s.onRequest != nil {
			s.onRequest(h.id)
		}
		if seen[0] != nil {
			seen[0](h.id)
		}
		if answer == nil { // a peer that never responds
			_, _ = io.Copy(io.Discard, r)
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
		if s.onAnswer != nil {
			s.onAnswer(h.id)
		}
		if seen[1] != nil {
			seen[1](h.id)
		}
	}
}

// observe sets functions that are called like onRequest and onAnswer from now on.
func (s *peer) observe(request, answer func(id string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = [2]func(id string){request, answer}
}

// respond replaces the response.
func (s *peer) respond(answer []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *peer) close() {
	s.ln.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}
