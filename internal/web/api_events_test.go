package web

import (
	"bufio"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// watch opens the stream of events.
func (g *gateway) watch() *http.Response {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.url+"events", http.NoBody)
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestOverviewStreamEndsWithAPI(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	g.enqueue(nil)
	resp := g.watch()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Fatalf("it is %s", got)
	}
	lines, overviews := bufio.NewScanner(resp.Body), 0
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		var o struct {
			Node    string         `json:"node"`
			Tasks   map[string]int `json:"tasks"`
			History []any          `json:"history"`
		}
		if err := json.Unmarshal([]byte(data), &o); err != nil || o.Node != "here" || len(o.Tasks) != 5 || len(o.History) != historyPoints {
			t.Errorf("it is %s: %v", data, err)
		}
		if overviews++; overviews == 3 {
			g.api.Close()
		}
	}
	if err := lines.Err(); err != nil || overviews < 3 {
		t.Errorf("%d overviews came: %v", overviews, err)
	}
	g.ask(http.MethodGet, "events", http.StatusServiceUnavailable)
	g.ask(http.MethodGet, "overview", http.StatusOK) // all other requests are still served
}

func TestWatchersAreBounded(t *testing.T) {
	t.Parallel()
	g := newGateway(t)
	for range maxViewers {
		if resp := g.watch(); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
	}
	g.ask(http.MethodGet, "events", http.StatusServiceUnavailable)
}

func TestUnavailableEngineIsAskedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		opened := 0
		a := NewAPI(APIConfig{Open: func() (engine.Engine, func(), error) {
			opened++
			return nil, nil, errors.New("unavailable")
		}})
		look := func() int {
			w := httptest.NewRecorder()
			a.Serve(w, httptest.NewRequest(http.MethodGet, "/overview", http.NoBody), "overview")
			return w.Code
		}
		for range maxViewers {
			if code := look(); code != http.StatusServiceUnavailable {
				t.Errorf("it answers %d", code)
			}
		}
		if opened != 1 {
			t.Errorf("it was asked for %d times", opened)
		}
		<-time.After(summaryAge) // on the fake clock
		if look(); opened != 2 {
			t.Errorf("a moment later it was asked for %d times in all", opened)
		}
	})
}
