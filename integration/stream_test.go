package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// jsonRequest is a request whose callback goes to the receiver.
func jsonRequest(t *testing.T, g *gatewaytest.Gateway, rcv *gatewaytest.Receiver) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", g.URL("/"), strings.NewReader(`{"callback_url":"`+rcv.URL+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	return req
}

func TestCapturedEventsReachClientOneByOne(t *testing.T) {
	t.Parallel()
	seen := make(chan int) // what the client has received before the app sends more
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		rc := http.NewResponseController(w)
		for i := range 5 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			if rc.Flush() != nil || <-seen != i {
				return
			}
		}
	})
	for _, coding := range []string{"identity", "gzip"} { // encode is between the callback handler and the client
		t.Run(coding, func(t *testing.T) {
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.Start(t, gatewaytest.ToLocal, "encode gzip {\nminimum_length 0\n}\ncallback\nreverse_proxy "+app)
			req := jsonRequest(t, g, rcv)
			if coding == "identity" {
				req.Header.Set("Accept-Encoding", coding)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			lines := bufio.NewScanner(resp.Body)
			for i := range 5 {
				if !lines.Scan() || lines.Text() != fmt.Sprint("data: ", i) || !lines.Scan() {
					t.Fatalf("event %d is %q: %v", i, lines.Text(), lines.Err())
				}
				seen <- i
			}
			if lines.Scan() || lines.Err() != nil {
				t.Errorf("the end is %q, %v", lines.Text(), lines.Err())
			}
			form, err := url.ParseQuery(rcv.Next(t).Body)
			if want := "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n"; err != nil || form.Get("response") != want {
				t.Errorf("the callback is %q %v", form, err)
			}
		})
	}
}

func TestTrailersAndEarlyHintsPass(t *testing.T) {
	t.Parallel()
	trailers := make(chan http.Header, 1)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		trailers <- r.Trailer
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("Trailer", "X-Announced")
		_, _ = io.WriteString(w, "the body")
		w.Header().Set("X-Announced", "a")
		w.Header().Set(http.TrailerPrefix+"X-Other", "b")
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	req := jsonRequest(t, g, rcv)
	req.ContentLength = -1
	req.Trailer = http.Header{"X-Sum": {"of the request"}}
	var hints []string
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, header.Get("Link")))
			return nil
		},
	}))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "the body" {
		t.Fatalf("%q %v", body, err)
	}
	if len(hints) != 1 || hints[0] != "103</style.css>; rel=preload" || resp.Header.Get("Link") != "" {
		t.Errorf("the hints were %q, then %q", hints, resp.Header.Get("Link"))
	}
	if got := (<-trailers).Get("X-Sum"); got != "of the request" {
		t.Errorf("the app's trailer was %q", got)
	}
	if resp.Trailer.Get("X-Announced") != "a" || resp.Trailer.Get("X-Other") != "b" {
		t.Errorf("the client's trailers were %v", resp.Trailer)
	}
	if c := rcv.Next(t); c.Status() != "COMPLETE" || c.Body != "response=the+body" || c.Header.Get("callback-upstream-status") != "200" {
		t.Errorf("the callback is %s %q after %s", c.Status(), c.Body, c.Header.Get("callback-upstream-status"))
	}
}

// Java's client and curl --http2 offer h2c with every request. Such a request is a task,
// and the app does not see the offer: if it switched, the task would have no response.
func TestOfferOfHTTP2KeepsCallback(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q", []string{r.Header.Get("Connection"), r.Header.Get("Upgrade"), r.Header.Get("HTTP2-Settings")})
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	for _, offer := range []string{"h2c", "TLS/1.2, h2c"} {
		_, text := g.Do(http.MethodPost, "/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL), "Content-Type", "application/json",
			"Connection", "Upgrade, HTTP2-Settings", "Upgrade", offer, "HTTP2-Settings", "AAMAAABkAAQAAP__")
		if text != `["" "" ""]` {
			t.Errorf("the app saw %s", text)
		}
		if c := rcv.Next(t); c.Status() != "COMPLETE" {
			t.Errorf("the callback is %s %q", c.Status(), c.Body)
		}
	}
}

func TestUpgradedConnectionPasses(t *testing.T) {
	t.Parallel()
	requests := make(chan http.Header, 1)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		requests <- r.Header.Clone()
		conn, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, both)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback "+rcv.URL+"\nreverse_proxy "+app)
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nBeam-Task-Id: theirs\r\n\r\n", g.Addr)
	answers := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answers, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("beam-task-id") != "" {
		t.Fatalf("%v %v", resp, err)
	}
	if h := <-requests; h.Get("Beam-Task-Id") == "theirs" || h.Get("Upgrade") != "websocket" {
		t.Errorf("the app got %v", h)
	}
	for i := range 10 {
		sent := fmt.Sprintf("\x82\x0bframe %05d", i)
		got := make([]byte, len(sent))
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(answers, got); err != nil || string(got) != sent {
			t.Fatalf("frame %d was echoed as %q: %v", i, got, err)
		}
	}
}

// part is what an app writes at once. Together, the parts exceed the socket buffers.
var part = strings.Repeat("0123456789abcdef", 4<<10)

func TestTaskContinuesWhenClientDisconnects(t *testing.T) {
	t.Parallel()
	const parts = 64
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		for _, when := range []string{"before the header", "after the header", "in the body"} {
			t.Run(proto+" "+when, func(t *testing.T) {
				t.Parallel()
				started, left := make(chan struct{}), make(chan struct{})
				ended := make(chan error, 1)
				app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
					rc := http.NewResponseController(w)
					close(started)
					if when == "after the header" {
						ended <- rc.Flush()
					}
					for i := range parts {
						if i == 1 || when != "in the body" {
							<-left
						}
						if _, err := io.WriteString(w, part); err != nil {
							ended <- err
							return
						}
						if err := rc.Flush(); err != nil {
							ended <- err
							return
						}
					}
					ended <- context.Cause(r.Context())
				})
				rcv := gatewaytest.NewReceiver(t, nil)
				g, client := startH2C(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
				if proto == "HTTP/1.1" {
					client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
				}
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				req := jsonRequest(t, g, rcv).WithContext(ctx)
				if when == "before the header" {
					go func() {
						<-started
						leave()
					}()
				}
				resp, err := client.Do(req)
				switch when {
				case "before the header":
					if !errors.Is(err, context.Canceled) {
						t.Fatalf("the client got %v %v", resp, err)
					}
				case "after the header":
					if err := errors.Join(err, <-ended); err != nil {
						t.Fatal(err)
					}
				case "in the body":
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.ReadFull(resp.Body, make([]byte, len(part))); err != nil {
						t.Fatal(err)
					}
				}
				leave()
				close(left)
				if err := <-ended; err != nil {
					t.Errorf("the app's request ended with %v", err)
				}
				c := rcv.Next(t)
				if want := "response=" + strings.Repeat(part, parts); c.Status() != "COMPLETE" || c.Body != want {
					t.Errorf("the callback is %s with %d bytes of %d", c.Status(), len(c.Body), len(want))
				}
			})
		}
	}
}

func TestClientDisconnectsAfterRequest(t *testing.T) {
	t.Parallel()
	app, _ := newRecorder(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "done") })
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	for range 50 {
		conn, err := net.Dial("tcp", g.Addr)
		if err != nil {
			t.Fatal(err)
		}
		body := `{"callback_url":"` + rcv.URL + `"}`
		_, err = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", g.Addr, len(body), body)
		if err := errors.Join(err, conn.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 {
		if c := rcv.Next(t); c.Status() != "COMPLETE" || c.Body != "response=done" {
			t.Errorf("the callback is %s %q", c.Status(), c.Body)
		}
	}
}

func TestClientDisconnectsDuringRequest(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 2)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		ended <- err
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	body := `{"callback_url":"` + rcv.URL + `"}`
	_, err = fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", g.Addr, len(body)+1, body)
	if err := errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	// The app may see no request, or an incomplete one.
	resp, _ := g.Do("POST", "/", `{"callback_url":"`+rcv.URL+`"}`, "Content-Type", "application/json")
	if c := rcv.Next(t); c.TaskID() != resp.Header.Get("beam-task-id") {
		t.Errorf("a request that was not whole had callback %s %q", c.Status(), c.Body)
	}
	if err := <-ended; err == nil {
		return
	}
	if err := <-ended; err != nil {
		t.Errorf("the whole request ended with %v", err)
	}
}
