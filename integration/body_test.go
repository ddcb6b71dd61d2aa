package integration

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// startH2C starts a gateway with HTTP/2 without TLS, and returns a client for it.
func startH2C(t *testing.T, options, site string) (*gatewaytest.Gateway, *http.Client) {
	t.Helper()
	g := gatewaytest.New(t, options, site)
	g.Edit("auto_https off", "auto_https off\nservers {\nprotocols h1 h2c\n}")
	g.Start()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return g, &http.Client{Transport: transport}
}

func TestChunkedUploadStaysChunked(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	body := `{"text":"` + strings.Repeat("a long prompt ", 100_000) + `","callback_url":"` + rcv.URL + `"}`
	// The length is unknown and the reader returns a few bytes at a time.
	resp, _, err := gatewaytest.Send("POST", g.URL("/"), io.MultiReader(strings.NewReader(body[:7]), strings.NewReader(body[7:])),
		"Content-Type", "application/json")
	if err != nil {
		t.Fatal(err)
	}
	a := <-got
	if a.body != body || a.ContentLength != -1 || len(a.TransferEncoding) != 1 {
		t.Errorf("the app got %d bytes of %d, Content-Length %d, %v", len(a.body), len(body), a.ContentLength, a.TransferEncoding)
	}
	if c := rcv.Next(t); c.TaskID() != resp.Header.Get("beam-task-id") {
		t.Errorf("the callback is of task %s", c.TaskID())
	}
}

func TestHTTP2RequestBecomesTask(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"response":"example response"}`)
	})
	check := func(t *testing.T, g *gatewaytest.Gateway, client *http.Client, scheme string) {
		rcv := gatewaytest.NewReceiver(t, nil)
		for _, length := range []int64{0, -1} { // with and without a Content-Length
			body := `{"prompt":"` + strings.Repeat("x", 200_000) + `","callback_url":"` + rcv.URL + `"}`
			req, err := http.NewRequest("POST", scheme+g.Addr+"/", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if length != 0 {
				req.ContentLength = length
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.ProtoMajor != 2 || string(text) != `{"response":"example response"}` {
				t.Fatalf("%s %d %s %v", resp.Proto, resp.StatusCode, text, err)
			}
			if a := <-got; a.body != body || a.task() != resp.Header.Get("beam-task-id") {
				t.Errorf("the app got %d bytes, task %q", len(a.body), a.task())
			}
			if c := rcv.Next(t); c.TaskID() != resp.Header.Get("beam-task-id") || c.TaskID() == "" {
				t.Errorf("the callback is of task %q", c.TaskID())
			}
		}
	}
	t.Run("without TLS", func(t *testing.T) {
		g, client := startH2C(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
		check(t, g, client, "http://")
	})
	t.Run("with TLS", func(t *testing.T) {
		g := gatewaytest.New(t, gatewaytest.ToLocal, "tls internal\ncallback\nreverse_proxy "+app)
		g.Edit("auto_https off", "auto_https disable_redirects\nskip_install_trust")
		g.Edit("http://", "https://")
		g.Start()
		transport := &http.Transport{
			ForceAttemptHTTP2: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		}
		t.Cleanup(transport.CloseIdleConnections)
		client := &http.Client{Transport: transport}
		g.Eventually("the gateway has a certificate", func() error {
			resp, err := client.Head("https://" + g.Addr + "/")
			if err == nil {
				resp.Body.Close()
				<-got
			}
			return err
		})
		check(t, g, client, "https://")
	})
}

func TestCompressedBodyIsForwardedUnchanged(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback {\nmax_request 64KiB\n}\nreverse_proxy "+app)
	document := func(padding int) string {
		return `{"callback_url":"` + rcv.URL + `","padding":"` + strings.Repeat("0", padding) + `"}`
	}
	large := gatewaytest.Fewer(100 << 20)
	for name, c := range map[string]struct {
		coding, body string
		status       int
		isTask       bool
	}{
		"gzip":              {"gzip", gzipped(t, document(10)), 200, true},
		"gzip twice":        {"gzip, gzip", gzipped(t, gzipped(t, document(10))), 200, false},
		"identity":          {"identity", document(10), 200, true},
		"not compressed":    {"gzip", document(10), 200, false},
		"a broken end":      {"gzip", gzipped(t, document(10))[:60], 200, false},
		"more than one":     {"gzip", gzipped(t, document(10)) + "garbage", 200, false},
		"unknown":           {"rot13", document(10), 200, false},
		"too large decoded": {"gzip", gzipped(t, document(large)), 413, false},
		"large, no member":  {"gzip", gzipped(t, `{"a":"`+strings.Repeat("0", large)+`","callback_url":"`+rcv.URL+`"}`), 200, false},
	} {
		t.Run(name, func(t *testing.T) {
			resp, text := g.Do("POST", "/", c.body, "Content-Type", "application/json", "Content-Encoding", c.coding)
			id := resp.Header.Get("beam-task-id")
			if resp.StatusCode != c.status || (id != "") != c.isTask {
				t.Fatalf("the client got %d %s, task %q", resp.StatusCode, text, id)
			}
			if c.status != 200 {
				return
			}
			if a := <-got; a.body != c.body || a.Header.Get("Content-Encoding") != c.coding {
				t.Errorf("the app got %d other bytes in coding %q", len(a.body), a.Header.Get("Content-Encoding"))
			}
			if c.isTask && rcv.Next(t).TaskID() != id {
				t.Error("the callback is of another task")
			}
		})
	}
}

func gzipped(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestBodyOverMaxRequest(t *testing.T) {
	t.Parallel()
	const limit = 64 << 10
	type sum struct {
		hash [32]byte
		size int64
	}
	sums := make(chan sum, 10)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			return
		}
		sums <- sum{[32]byte(h.Sum(nil)), n}
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback {\nmax_request 64KiB\n}\nreverse_proxy "+app)
	member := `"callback_url":"` + rcv.URL + `"`
	// before returns a body in which the member's last byte is at the given offset.
	before := func(end int) string {
		return `{"a":"` + strings.Repeat("x", end-len(`{"a":"",`)-len(member)) + `",` + member
	}
	exact := before(limit-1) + "}"
	for name, c := range map[string]struct {
		body   string
		status int
		isTask bool
	}{
		"exactly the limit":                    {exact, 200, true},
		"one byte over":                        {exact + "\n", 413, false},
		"the member at the end of the limit":   {before(limit) + "}", 413, false},
		"the member across the limit":          {before(limit+5) + "}", 200, false},
		"the member after the limit":           {before(limit+len(member)+1) + "}", 200, false},
		"the member far after the limit":       {before(20<<20) + "}", 200, false},
		"the member first":                     {"{" + member + `,"a":"` + strings.Repeat("x", 20<<20) + `"}`, 413, false},
		"the member null":                      {`{"callback_url":null,"a":"` + strings.Repeat("x", 1<<20) + `"}`, 200, false},
		"the member only nested":               {`{"a":{` + member + `},"b":"` + strings.Repeat("x", 1<<20) + `"}`, 200, false},
		"the member twice":                     {"{" + member + "," + member + `,"a":"` + strings.Repeat("x", 1<<20) + `"}`, 400, false},
		"not a string":                         {`{"callback_url":[1],"a":"` + strings.Repeat("x", 1<<20) + `"}`, 400, false},
		"binary data with a JSON content type": {strings.Repeat("\x00\xff{\"", 1<<20), 200, false},
		"a long list of member names":          {`[` + strings.Repeat(`"callback_url",`, 1<<16) + `0]`, 200, false},
	} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, chunked %v", name, chunked), func(t *testing.T) {
				var body io.Reader = strings.NewReader(c.body)
				if chunked {
					body = io.MultiReader(body)
				}
				resp, text, err := gatewaytest.Send("POST", g.URL("/"), body, "Content-Type", "application/json")
				if err != nil {
					t.Fatal(err)
				}
				id := resp.Header.Get("beam-task-id")
				if resp.StatusCode != c.status || (id != "") != c.isTask {
					t.Fatalf("the client got %d %s, task %q", resp.StatusCode, text, id)
				}
				if c.status != 200 {
					return
				}
				if got := <-sums; got.hash != sha256.Sum256([]byte(c.body)) {
					t.Errorf("the app got %d bytes of %d, or others", got.size, len(c.body))
				}
				if c.isTask && rcv.Next(t).TaskID() != id {
					t.Error("the callback is of another task")
				}
			})
		}
	}
	if len(sums) != 0 {
		t.Error("a refused request was forwarded")
	}
}

func TestLargeUploadStreams(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadFull(r.Body, make([]byte, 70<<10)); err == nil {
			close(started)
		}
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback {\nmax_request 64KiB\n}\nreverse_proxy "+app)
	reader, writer := io.Pipe()
	go func() {
		_, err := io.WriteString(writer, `{"a":"`+strings.Repeat("x", 200<<10))
		if err == nil {
			<-started // the app gets the beginning before the client sends the end
			_, err = io.WriteString(writer, strings.Repeat("x", 5<<20)+`"}`)
		}
		writer.CloseWithError(err)
	}()
	resp, text, err := gatewaytest.Send("POST", g.URL("/"), reader, "Content-Type", "application/json")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint(len(`{"a":"`)+200<<10+5<<20+len(`"}`)-70<<10, nil)
	if resp.StatusCode != 200 || text != want {
		t.Errorf("%d %s, want %s", resp.StatusCode, text, want)
	}
}

func TestStreamPassesInBothDirections(t *testing.T) {
	t.Parallel()
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := errors.Join(rc.EnableFullDuplex(), rc.Flush()); err != nil {
			return
		}
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintln(w, "echo", lines.Text())
			if rc.Flush() != nil {
				return
			}
		}
	})
	for _, own := range []bool{false, true} { // true: a task, captured while it streams
		t.Run("a task "+strconv.FormatBool(own), func(t *testing.T) {
			rcv := gatewaytest.NewReceiver(t, nil)
			site := "callback\nreverse_proxy " + app
			if own {
				site = "callback " + rcv.URL + "\nreverse_proxy " + app
			}
			g, client := startH2C(t, "", site)
			reader, writer := io.Pipe()
			defer writer.Close()
			req, err := http.NewRequest("POST", g.URL("/"), reader)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-ndjson")
			resp, err := client.Do(req) // the response begins before the client sends the body
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if id := resp.Header.Get("beam-task-id"); (id != "") != own {
				t.Errorf("it is task %q", id)
			}
			answer := bufio.NewScanner(resp.Body)
			for i := range 20 {
				fmt.Fprintln(writer, i)
				if !answer.Scan() || answer.Text() != fmt.Sprint("echo ", i) {
					t.Fatalf("line %d was echoed as %q: %v", i, answer.Text(), answer.Err())
				}
			}
			writer.Close()
			if answer.Scan() || answer.Err() != nil {
				t.Errorf("the end is %q, %v", answer.Text(), answer.Err())
			}
			if own {
				if c := rcv.Next(t); c.Status() != "COMPLETE" || !strings.HasPrefix(c.Body, "response=echo+0%0Aecho+1%0A") {
					t.Errorf("the callback is %s %q", c.Status(), c.Body)
				}
			}
		})
	}
}

func TestExpectContinueIsAnswered(t *testing.T) {
	t.Parallel()
	app, got := newRecorder(t, nil)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, "callback\nreverse_proxy "+app)
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := `{"callback_url":"` + rcv.URL + `"}`
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"+
		"Expect: 100-continue\r\n\r\n", g.Addr, len(body))
	answers := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answers, nil)
	if err != nil || resp.StatusCode != 100 {
		t.Fatalf("before its body the client got %v %v", resp, err)
	}
	if _, err := io.WriteString(conn, body); err != nil {
		t.Fatal(err)
	}
	if resp, err = http.ReadResponse(answers, nil); err != nil {
		t.Fatal(err)
	}
	id := resp.Header.Get("beam-task-id")
	if resp.StatusCode != 200 || id == "" {
		t.Fatalf("the client got %s, task %q", resp.Status, id)
	}
	if a := <-got; a.body != body {
		t.Errorf("the app got %q", a.body)
	}
	if c := rcv.Next(t); c.TaskID() != id {
		t.Errorf("the callback is of task %q", c.TaskID())
	}
}
