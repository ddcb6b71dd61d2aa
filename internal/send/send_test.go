package send

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

func newSender(t *testing.T, change func(*Options)) *Sender {
	t.Helper()
	policy, err := safedial.NewPolicy(safedial.Config{Allow: []string{"127.0.0.0/8"}, Ports: []string{"any"}})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Timeout: 10 * time.Second, Policy: policy, Trusted: policy.Trusted(), UserAgent: "test", PerHost: 4}
	if change != nil {
		change(&o)
	}
	s := New(o)
	t.Cleanup(s.Close)
	return s
}

func newCallback(t *testing.T, url, result string) Callback {
	t.Helper()
	rec := &task.Record{
		Task: task.Task{ID: "id-1", Status: task.Complete, UpstreamStatus: 200},
		Callback: &task.Callback{URL: url, Format: encode.FormatRaw, TaskHeader: "beam-task-id",
			StatusHeader: "x-beam-task-status", MaxResult: 64 << 20},
		Result: &task.Result{ContentType: "text/plain", Kept: int64(len(result)), Size: int64(len(result))},
	}
	body, err := encode.New(encode.Options{Folder: t.TempDir()}).Encode(t.Context(), rec,
		func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(result)), nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(body.Release)
	return Callback{Record: rec, Body: body}
}

// newPeer serves each connection with a function.
func newPeer(t *testing.T, serve func(net.Conn)) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return "http://" + ln.Addr().String()
}

// The keys of the specification's examples, which nobody uses.
const (
	hmacKey    = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	ed25519Key = "whsk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

func TestBodyIsSentWholeAndSigned(t *testing.T) {
	t.Parallel()
	var keys []webhook.Key
	for _, text := range []string{hmacKey, ed25519Key} {
		key, err := webhook.ParseKey(text)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	for name, size := range map[string]int{"empty": 0, "in memory": 100, "in a file": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := strings.Repeat("x", size)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil || string(body) != want || r.ContentLength != int64(size) {
					t.Errorf("%d bytes came, with a length of %d: %v", len(body), r.ContentLength, err)
				}
				for _, key := range keys {
					if err := webhook.Verify([]webhook.Key{key}, r.Header, body, time.Now()); err != nil {
						t.Errorf("%v: %v", key, err)
					}
				}
				w.WriteHeader(http.StatusAccepted)
			}))
			defer srv.Close()
			s := newSender(t, func(o *Options) { o.Keys = keys })
			if ans := s.Send(t.Context(), newCallback(t, srv.URL, want), nil); !ans.Accepted() || ans.Status != http.StatusAccepted || !ans.Connected {
				t.Errorf("the answer is %+v", ans)
			}
		})
	}
}

func TestClosedIdleConnectionIsReplaced(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 1<<20)
	var mu sync.Mutex
	requests := 0
	url := newPeer(t, func(conn net.Conn) {
		r := bufio.NewReader(conn)
		for n := 0; ; n++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if body, err := io.ReadAll(req.Body); err != nil || n == 1 || string(body) != large {
				return
			}
			mu.Lock()
			requests++
			mu.Unlock()
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	s := newSender(t, nil)
	for range 3 {
		if ans := s.Send(t.Context(), newCallback(t, url, large), nil); !ans.Accepted() {
			t.Errorf("the answer is %+v", ans)
		}
	}
	if mu.Lock(); requests != 3 {
		t.Errorf("%d whole requests came", requests)
	}
	mu.Unlock()
}

func TestAttemptErrors(t *testing.T) {
	t.Parallel()
	const closed = "http://127.0.0.1:1" // another test may listen on any port that was free
	silent := newPeer(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	for _, test := range []struct {
		name, url        string
		connected, final bool
		message          string
	}{
		{"connection refused", closed, false, false, "connect: connection refused"},
		{"refused address", "http://10.0.0.1:80", false, true, "private"},
		{"silent", silent, true, false, "no answer within 2s"},
		{"URL that cannot be sent", "http://[::1", false, true, "cannot be sent"},
		{"talks first", newPeer(t, func(conn net.Conn) { _, _ = io.WriteString(conn, "SSH-2.0-x\r\n") }), true, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newSender(t, func(o *Options) { o.Timeout = time.Minute })
			if test.url == silent {
				s = newSender(t, func(o *Options) { o.Timeout = 2 * time.Second })
			}
			ans := s.Send(t.Context(), newCallback(t, test.url, "x"), nil)
			if ans.Status != 0 || ans.Connected != test.connected && test.name != "talks first" || ans.Final() != test.final ||
				ans.Message() == "" || !strings.Contains(ans.Message(), test.message) {
				t.Errorf("the answer is %+v: %s", ans, ans.Message())
			}
		})
	}
	t.Run("context ends", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s := newSender(t, nil)
		if ans := s.Send(ctx, newCallback(t, silent, "x"), nil); !errors.Is(ans.Err, context.Canceled) {
			t.Errorf("the answer is %+v", ans)
		}
	})
}

// syncBuffer is a log that several goroutines write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestUnsolicitedResponseIsNotLogged is not parallel because it reads the process's log.
func TestUnsolicitedResponseIsNotLogged(t *testing.T) {
	const secret = "hunter2-hunter2-hunter2-hunter2"
	var written syncBuffer
	before := log.Writer()
	log.SetOutput(&written)
	defer log.SetOutput(before)
	srv := httptest.NewUnstartedServer(nil)
	srv.StartTLS()
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	s := newSender(t, func(o *Options) { o.TLS = &tls.Config{RootCAs: roots} })
	answer := func(apart bool) func(net.Conn) {
		return func(conn net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
				return
			}
			const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
			if apart {
				_, _ = io.WriteString(conn, ok)
				time.AfterFunc(20*time.Millisecond, func() { _, _ = io.WriteString(conn, secret) })
			} else {
				_, _ = io.WriteString(conn, ok+secret)
			}
			_, _ = io.Copy(io.Discard, conn) // until it is closed
		}
	}
	for name, serve := range map[string]func(net.Conn){
		"after the answer": answer(true),
		"with the answer":  answer(false),
		"first":            func(conn net.Conn) { _, _ = io.WriteString(conn, secret); _, _ = io.Copy(io.Discard, conn) },
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{}, 10)
			plain := newPeer(t, func(conn net.Conn) {
				serve(conn)
				ended <- struct{}{}
			})
			secure := newPeer(t, func(conn net.Conn) {
				serve(tls.Server(conn, &tls.Config{Certificates: srv.TLS.Certificates}))
				ended <- struct{}{}
			})
			for _, url := range []string{plain, strings.Replace(secure, "http:", "https:", 1)} {
				ans := s.Send(t.Context(), newCallback(t, url, "x"), nil)
				if name != "first" && !ans.Accepted() {
					t.Errorf("the answer is %+v", ans)
				}
				<-ended // the connection is closed at once, not after the idle timeout
			}
			if strings.Contains(written.String(), secret[:piece]) {
				t.Errorf("the log has %s", written.String())
			}
		})
	}
}

func TestTransportIsReplacedAfterManyHosts(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	s := newSender(t, nil)
	first := s.guarded.current()
	for range 3 {
		s.Send(t.Context(), newCallback(t, srv.URL, "x"), nil)
	}
	if n := len(s.guarded.strangers); n != 0 {
		t.Errorf("%d hosts without a connection are counted, and one has one", n)
	}
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(srv.URL, "http://"))
	srv.Close() // nobody listens there
	for i := range maxStrangers + 10 {
		c := newCallback(t, fmt.Sprintf("http://127.9.%d.%d:%s/", i/250, i%250+1, port), "x")
		if ans := s.Send(t.Context(), c, nil); ans.Status != 0 {
			t.Fatalf("the answer is %+v", ans)
		}
		if i == maxStrangers-2 && s.guarded.current() != first {
			t.Error("the transport was replaced too early")
		}
	}
	if s.guarded.current() == first || len(s.guarded.strangers) != 10 {
		t.Errorf("the transport was not replaced; %d hosts are counted", len(s.guarded.strangers))
	}
}

// A URL may have an empty port, which is not for the Host header.
func TestHostHeaderHasNoEmptyPort(t *testing.T) {
	t.Parallel()
	rec := &task.Record{Callback: &task.Callback{URL: "http://h.test:/x"}}
	req, err := new(Sender).request(t.Context(), Callback{Record: rec, Body: new(encode.Body)}, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if req.Host != "h.test" || req.URL.Host != "h.test" {
		t.Errorf("the host is %q, in the URL %q", req.Host, req.URL.Host)
	}
}
