package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// sendRaw writes the bytes of a request to the gateway and returns the response.
func sendRaw(t *testing.T, g *gatewaytest.Gateway, request string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// foreign has bytes of Latin-1 and UTF-8, and some that are valid in neither.
const foreign = "r\xe9sum\xe9 \u00e9 \xff\xc3z"

func TestBytesOutsideUTF8SurviveStore(t *testing.T) {
	t.Parallel()
	seen := make(chan *http.Request, 2)
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		w.Header()["Content-Disposition"] = []string{foreign, "second " + foreign}
		w.Header()["Content-Type"] = []string{"text/plain; x=" + foreign}
		_, _ = io.WriteString(w, "done")
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, `
	route /direct* {
		reverse_proxy `+app+`
	}
	route /q* {
		task_queue q {
			callback {
				profile openfaas
				header X-Cookie {http.request.header.Cookie}
			}
			reverse_proxy `+app+`
		}
	}`)
	request := func(path string) string {
		return fmt.Sprintf("POST %s?n=\xe9&m=%%E9 HTTP/1.1\r\nHost: %s\r\nCookie: c=%s\r\nUser-Agent: %s\r\n"+
			"Referer: http://a/\xe9\r\nX-Callback-Url: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
			path, g.Addr, foreign, foreign, rcv.URL)
	}
	sendRaw(t, g, request("/direct"))
	direct := <-seen
	resp := sendRaw(t, g, request("/q/x"))
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("the queue answers %s", resp.Status)
	}
	id := resp.Header.Get("X-Call-Id")
	queued := <-seen
	if queued.Header.Get("Cookie") != "c="+foreign {
		t.Errorf("the cookie is %q", queued.Header.Get("Cookie"))
	}
	for _, name := range []string{"Cookie", "User-Agent", "Referer"} {
		if got, want := queued.Header.Get(name), direct.Header.Get(name); got != want {
			t.Errorf("the app gets %s: %q from the queue, %q directly", name, got, want)
		}
	}
	if queued.URL.RawQuery != direct.URL.RawQuery {
		t.Errorf("the app gets the query %q from the queue, %q directly", queued.URL.RawQuery, direct.URL.RawQuery)
	}
	want := []string{foreign, "second " + foreign}
	callback := rcv.Next(t)
	for name, values := range map[string][]string{
		"Content-Disposition": want, "Content-Type": {"text/plain; x=" + foreign}, "X-Cookie": {"c=" + foreign},
	} {
		if got := callback.Header[name]; strings.Join(got, "|") != strings.Join(values, "|") {
			t.Errorf("the callback has %s: %q, want %q", name, got, values)
		}
	}
	resp, text := g.Do(http.MethodGet, "/q/"+id+"/result", "")
	if got := resp.Header["Content-Disposition"]; strings.Join(got, "|") != strings.Join(want, "|") || text != "done" {
		t.Errorf("the result is %q with %q", text, got)
	}
}
