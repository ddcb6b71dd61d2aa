package gatewaytest

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Delivering returns options that allow callbacks to the test's own receivers, and
// further lines of the delivery block.
func Delivering(lines ...string) string {
	if !strings.Contains(strings.Join(lines, "\n"), "timeout ") {
		lines = append(lines, attemptTimeout)
	}
	return "delivery {\nallow 127.0.0.0/8\nports any\n" + strings.Join(lines, "\n") + "\n}"
}

// ExampleSite returns a site whose app responds with the documented example.
func ExampleSite(t testing.TB) string {
	return "callback\nreverse_proxy " + NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"response":"example response"}`)
	})
}

// Task sends a request that names a callback and returns the task's ID.
func (g *Gateway) Task(callbackURL string, header ...string) string {
	g.T.Helper()
	body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL)
	resp, text := g.Do(http.MethodPost, "/", body, append(header, "Content-Type", "application/json")...)
	if resp.StatusCode != http.StatusOK {
		g.T.Fatalf("the client got %s %s", resp.Status, text)
	}
	return resp.Header.Get("beam-task-id")
}

// Tasks sends n requests, several at a time.
func (g *Gateway) Tasks(n int, callbackURL func(i int) string) {
	g.T.Helper()
	var next atomic.Int64
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				body := fmt.Sprintf(`{"callback_url":%q}`, callbackURL(int(i-1)))
				resp, err := client.Post(g.URL("/"), "application/json", strings.NewReader(body))
				if err != nil {
					g.T.Errorf("a request failed: %v", err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					g.T.Errorf("a request got %s", resp.Status)
				}
			}
		})
	}
	clients.Wait()
}

// Refused sends a request that must be refused, and returns the reason.
func (g *Gateway) Refused(callbackURL string) string {
	g.T.Helper()
	resp, text := g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, callbackURL))
	if resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Content-Type") != "application/problem+json" {
		g.T.Errorf("%s got %s %s", callbackURL, resp.Status, text)
	}
	return text
}

// Edit replaces a part of the Caddyfile.
func (g *Gateway) Edit(old, new string) {
	g.T.Helper()
	text, err := os.ReadFile(g.File)
	if err != nil || !bytes.Contains(text, []byte(old)) {
		g.T.Fatalf("no %q in the Caddyfile: %v", old, err)
	}
	if err := os.WriteFile(g.File, bytes.Replace(text, []byte(old), []byte(new), 1), 0o600); err != nil {
		g.T.Fatal(err)
	}
}
