package web_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

// reading is the reader's end of a stream.
type reading struct {
	t      *testing.T
	lines  *bufio.Scanner
	lastID string
}

func open(t *testing.T, server *httptest.Server, target string, headers ...string) *reading {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "text/event-stream")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	answer, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Body.Close() })
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("the stream is %d %s", answer.StatusCode, answer.Header.Get("Content-Type"))
	}
	return &reading{t: t, lines: bufio.NewScanner(answer.Body)}
}

// next returns the next event as "reset <last>" or "callback <number>", or
// "end".
func (r *reading) next() string {
	r.t.Helper()
	var event string
	for r.lines.Scan() {
		name, value, _ := strings.Cut(r.lines.Text(), ": ")
		switch name {
		case "event":
			event = value
		case "id":
			r.lastID = value
		case "data":
			var data struct{ Last, Number uint64 }
			if err := json.Unmarshal([]byte(value), &data); err != nil {
				r.t.Fatalf("%s: %v", value, err)
			}
			return fmt.Sprint(event, " ", data.Last+data.Number)
		}
	}
	return "end"
}

func (r *reading) expect(want ...string) {
	r.t.Helper()
	for _, w := range want {
		if got := r.next(); got != w {
			r.t.Fatalf("got %q, want %q", got, w)
		}
	}
}

func newServer(t *testing.T, inbox *web.Inbox) *httptest.Server {
	server := httptest.NewUnstartedServer(inbox)
	server.Config.RegisterOnShutdown(inbox.Close)
	server.Start()
	t.Cleanup(func() {
		inbox.Close()
		server.Close()
	})
	return server
}

func TestStreamSendsOldAndNewCallbacks(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{})
	server := newServer(t, inbox)
	post(inbox, "/a", "")
	post(inbox, "/b", "")
	post(inbox, "/a/x", "")
	all, a := open(t, server, "/"), open(t, server, "/a/")
	all.expect("reset 3", "callback 1", "callback 2", "callback 3")
	a.expect("reset 3", "callback 1", "callback 3")
	post(inbox, "/a", "")
	post(inbox, "/b", "")
	post(inbox, "/a", "")
	all.expect("callback 4", "callback 5", "callback 6")
	a.expect("callback 4", "callback 6")
	serve(inbox, http.MethodDelete, "/b", nil)
	all.expect("reset 6", "callback 1", "callback 3", "callback 4", "callback 6")
	a.expect("reset 6", "callback 1", "callback 3", "callback 4", "callback 6")
}

func TestStreamResumes(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{})
	server := newServer(t, inbox)
	post(inbox, "/", "")
	first := open(t, server, "/")
	first.expect("reset 1", "callback 1")
	post(inbox, "/", "")
	open(t, server, "/", "Last-Event-ID", first.lastID).expect("callback 2")
	open(t, server, "/?after="+first.lastID).expect("callback 2")
	for _, madeUp := range []string{"1", "x.1", ".", "x", strings.TrimSuffix(first.lastID, "1") + "x"} {
		open(t, server, "/", "Last-Event-ID", madeUp).expect("reset 2", "callback 1", "callback 2")
	}
	serve(inbox, http.MethodDelete, "/", nil)
	open(t, server, "/?after="+first.lastID).expect("reset 0")
}

func TestStreamCutsLongBodies(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{})
	defer inbox.Close()
	post(inbox, "/", strings.Repeat("x", 100<<10))
	ctx, leave := context.WithCancel(t.Context())
	leave() // immediately: it still gets the pending events
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	r.Header.Set("Accept", "text/event-stream")
	w := httptest.NewRecorder()
	inbox.ServeHTTP(w, r)
	if n := strings.Count(w.Body.String(), "x"); n < 64<<10 || n > 65<<10 || !strings.Contains(w.Body.String(), `"body_truncated":true`) {
		t.Errorf("%d bytes of a body of 100 KiB stand in its event", n)
	}
}

func TestShutdownDoesNotWaitForStreams(t *testing.T) {
	t.Parallel()
	inbox := web.NewInbox(web.InboxConfig{})
	server := newServer(t, inbox)
	stream := open(t, server, "/")
	stream.expect("reset 0")
	if err := server.Config.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	stream.expect("end")
	inbox.Close() // again
	if w := serve(inbox, http.MethodGet, "/", nil, "Accept", "text/event-stream"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("a stream that began after Close got %d", w.Code)
	}
	if w := post(inbox, "/", ""); w.Code != http.StatusOK || len(list(t, inbox, "/")) != 1 {
		t.Errorf("what is not a stream does not work after Close: %d", w.Code)
	}
}

// slowReader is a ResponseWriter that takes an event only when the test permits it.
type slowReader struct {
	header http.Header
	got    bytes.Buffer
	let    chan struct{}
}

func (s *slowReader) Header() http.Header { return s.header }
func (s *slowReader) WriteHeader(int)     {}
func (s *slowReader) FlushError() error   { return nil }
func (s *slowReader) Write(b []byte) (int, error) {
	<-s.let
	return s.got.Write(b)
}

func TestSlowReaderBlocksNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inbox := web.NewInbox(web.InboxConfig{Keep: 3})
		post(inbox, "/", "")
		reader := &slowReader{header: http.Header{}, let: make(chan struct{})}
		go func() {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header.Set("Accept", "text/event-stream")
			inbox.ServeHTTP(reader, r)
		}()
		for range 2 { // the comment and the reset; callback 1 is being written
			reader.let <- struct{}{}
		}
		synctest.Wait()
		for range 50 {
			post(inbox, "/", "")
		}
		close(reader.let)
		synctest.Wait()
		inbox.Close()
		synctest.Wait()
		var got []string
		stream := &reading{t: t, lines: bufio.NewScanner(&reader.got)}
		for event := stream.next(); event != "end"; event = stream.next() {
			got = append(got, event)
		}
		if want := []string{"reset 1", "callback 1", "callback 49", "callback 50", "callback 51"}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestStuckReaderDoesNotDelayShutdown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inbox := web.NewInbox(web.InboxConfig{})
		post(inbox, "/", strings.Repeat("x", 60<<10))
		server, conn := connect(inbox)
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // it blocks in a write
		ctx, cancel := context.WithTimeout(t.Context(), 11*time.Second)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Errorf("the shutdown was held up: %v", err)
		}
		_ = conn.Close()
	})
}

func TestConnectionIsReusedAfterView(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server, conn := connect(web.NewInbox(web.InboxConfig{}))
		answers := bufio.NewReader(conn)
		for _, request := range []string{
			"GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
		} {
			<-time.After(time.Minute) // on the fake clock
			if _, err := io.WriteString(conn, request); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusOK || len(body) == 0 {
				t.Errorf("got %d, %d bytes, %v", answer.StatusCode, len(body), err)
			}
		}
		_ = server.Close()
	})
}

// connect serves a handler on one unbuffered connection, whose deadlines follow the
// fake clock.
func connect(inbox *web.Inbox) (*http.Server, net.Conn) {
	ours, theirs := net.Pipe()
	server := &http.Server{Handler: inbox}
	server.RegisterOnShutdown(inbox.Close)
	go func() { _ = server.Serve(&oneConn{conn: theirs, closed: make(chan struct{})}) }()
	return server, ours
}

// oneConn is a listener with a single connection.
type oneConn struct {
	conn   net.Conn
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	close(l.closed)
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

func TestIdleStreamIsKeptAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inbox := web.NewInbox(web.InboxConfig{})
		w := httptest.NewRecorder()
		ctx, leave := context.WithTimeout(t.Context(), time.Minute+time.Second)
		defer leave()
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
		r.Header.Set("Accept", "text/event-stream")
		inbox.ServeHTTP(w, r)
		if n := strings.Count(w.Body.String(), ": still here\n\n"); n != 4 {
			t.Errorf("%d signs of life in a minute:\n%s", n, w.Body)
		}
	})
}

func TestViewersAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		inbox := web.NewInbox(web.InboxConfig{})
		for range 64 {
			go serve(inbox, http.MethodGet, "/", nil, "Accept", "text/event-stream")
		}
		synctest.Wait()
		for _, accept := range []string{"text/event-stream", "application/json"} {
			w := serve(inbox, http.MethodGet, "/", nil, "Accept", accept)
			if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
				t.Errorf("%s: one too many got %d", accept, w.Code)
			}
		}
		if w := post(inbox, "/", ""); w.Code != http.StatusOK {
			t.Errorf("viewers kept a sender out: %d", w.Code)
		}
		inbox.Close()
		synctest.Wait()
		if got := list(t, inbox, "/"); len(got) != 1 {
			t.Errorf("when they are gone, %d callbacks are listed", len(got))
		}
	})
}
