package main

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"sync"
	"time"
)

// peer is the endpoint that runs the tasks and the receiver of the callbacks. It
// recognises a task by its ID, wherever a system puts it: in the URL, in a header, or in
// the body.
type peer struct {
	addr string
	srv  *http.Server

	mu    sync.Mutex
	tasks map[string]*entry
	moved time.Time // when a callback arrived last
}

// entry is a task.
type entry struct {
	accepted, answered, called time.Time
	calls                      int
}

func newPeer(addr string) (*peer, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	p := &peer{addr: ln.Addr().String(), tasks: make(map[string]*entry)}
	mux := http.NewServeMux()
	mux.HandleFunc("/run", p.run)
	mux.HandleFunc("/callback/", p.receive)
	p.srv = &http.Server{Handler: mux}
	go func() { _ = p.srv.Serve(ln) }() // ends with close
	return p, nil
}

func (p *peer) close() { p.srv.Close() }

func (p *peer) callbackURL(id string) string { return "http://" + p.addr + "/callback/" + id }
func (p *peer) runURL() string               { return "http://" + p.addr + "/run" }

// newID returns the ID of a new task.
func newID() string { return fmt.Sprintf("peertask%016x", rand.Uint64()) }

var taskID = regexp.MustCompile(`peertask[0-9a-f]{16}`)

// searched is how much of a body is searched for the ID, in bytes.
const searched = 4 << 10

func idOf(r *http.Request, body []byte) string {
	if id := taskID.FindString(r.URL.RequestURI()); id != "" {
		return id
	}
	for _, values := range r.Header {
		for _, value := range values {
			if id := taskID.FindString(value); id != "" {
				return id
			}
		}
	}
	return string(taskID.Find(body[:min(len(body), searched)]))
}

// run answers a task with its own body.
func (p *peer) run(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(r.Body); err != nil {
		return // the system was killed
	}
	id := idOf(r, body.Bytes())
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body.Bytes())
	p.mark(id, func(e *entry) { e.answered = time.Now() })
}

func (p *peer) receive(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	if _, err := body.ReadFrom(io.LimitReader(r.Body, searched)); err != nil {
		return
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return // it did not arrive whole
	}
	now := time.Now()
	p.mark(idOf(r, body.Bytes()), func(e *entry) {
		if e.calls++; e.calls == 1 {
			e.called, p.moved = now, now
		}
	})
}

// mark changes the entry of a task. A callback can arrive before the client knows that
// the task was accepted.
func (p *peer) mark(id string, change func(*entry)) {
	if id == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.tasks[id]
	if e == nil {
		e = new(entry)
		p.tasks[id] = e
	}
	change(e)
}

// missing returns how many accepted tasks have no callback, and when the last callback
// arrived.
func (p *peer) missing() (n int, moved time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.tasks {
		if !e.accepted.IsZero() && e.calls == 0 {
			n++
		}
	}
	return n, p.moved
}

// reset forgets all tasks.
func (p *peer) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.tasks)
	p.moved = time.Now()
}
