package send

import (
	"bytes"
	"crypto/x509"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// startBoth starts a receiver for each version of HTTP, and a sender that trusts
// both.
func startBoth(t *testing.T, timeout time.Duration, answer http.HandlerFunc) (s *Sender, urls map[string]string) {
	t.Helper()
	plain := httptest.NewServer(answer)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("the callback comes over %s", r.Proto)
		}
		answer(w, r)
	}))
	secure.EnableHTTP2 = true
	secure.StartTLS()
	s = newSender(t, func(o *Options) {
		o.Timeout = timeout
		o.TLS = secure.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		o.TLS.RootCAs = x509.NewCertPool()
		o.TLS.RootCAs.AddCert(secure.Certificate())
	})
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	return s, map[string]string{"HTTP/1": plain.URL, "HTTP/2": secure.URL}
}

func TestAnswerLimit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sent    int // then the receiver sends nothing, and does not end the answer
		timeout time.Duration
		whole   bool // whether the sender waits for more
	}{
		"one byte less": {16<<10 - 1, 3 * time.Second, true},
		"the limit":     {16 << 10, time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, urls := startBoth(t, test.timeout, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // the body is one byte
				_, _ = w.Write(bytes.Repeat([]byte("x"), test.sent))
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done() // the sender hangs up
			})
			for version, url := range urls {
				ans := s.Send(t.Context(), newCallback(t, url, "x"), nil)
				if !ans.Accepted() || ans.Excerpt != strings.Repeat("x", maxExcerpt) {
					t.Errorf("%s: the answer is %d with %d bytes: %v", version, ans.Status, len(ans.Excerpt), ans.Err)
				}
				if waited := ans.Took >= test.timeout; waited != test.whole {
					t.Errorf("%s: after %d bytes the attempt took %v", version, test.sent, ans.Took)
				}
			}
		})
	}
}

func TestConnectionIsReusedAfterLargeAnswer(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		size  int
		again bool
	}{{0, true}, {16 << 10, true}, {16<<10 + 1, false}} {
		from := make(chan string, 2)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from <- r.RemoteAddr
			_, _ = w.Write(bytes.Repeat([]byte("x"), test.size))
		}))
		s := newSender(t, nil)
		for range 2 {
			s.Send(t.Context(), newCallback(t, srv.URL, "x"), nil)
		}
		srv.Close()
		first, second := <-from, <-from
		if again := first == second; again != test.again {
			t.Errorf("after an answer of %d bytes the connection is used again: %v", test.size, again)
		}
	}
}

func TestAnswerHeaderLimit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		size int
		read bool
	}{
		"less": {63 << 10, true},
		"more": {65 << 10, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, urls := startBoth(t, time.Minute, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // the body is one byte
				w.Header().Set("X-Large", strings.Repeat("x", test.size))
			})
			for version, url := range urls {
				ans := s.Send(t.Context(), newCallback(t, url, "x"), nil)
				if ans.Accepted() != test.read || (ans.Err == nil) != test.read {
					t.Errorf("%s: the answer with a header of %d bytes is %d: %v", version, test.size, ans.Status, ans.Err)
				}
			}
		})
	}
}
