package gatewaytest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Attempt is a log line about a delivery attempt.
type Attempt struct {
	TaskID       string  `json:"task_id"`
	Attempt      int     `json:"attempt"`
	State        string  `json:"state"`
	CallbackHost string  `json:"callback_host"`
	StatusCode   int     `json:"status_code"`
	Duration     float64 `json:"duration"` // seconds
	RetryIn      float64 `json:"retry_in"` // seconds
	Error        string  `json:"error"`
}

// Metrics scrapes Caddy's admin endpoint: values by name with labels.
func (g *Gateway) Metrics() map[string]float64 {
	g.T.Helper()
	resp, text, err := Send(http.MethodGet, "http://"+g.Admin+"/metrics", http.NoBody)
	if err != nil || resp.StatusCode != http.StatusOK {
		g.T.Fatalf("scraping: %v %v", resp, err)
	}
	values := make(map[string]float64)
	for line := range strings.Lines(text) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			if value, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64); err == nil {
				values[line[:i]] = value
			}
		}
	}
	return values
}

// Metered waits until metrics have these values.
func (g *Gateway) Metered(want map[string]float64) {
	g.T.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		g.Eventually(name, func() error {
			if got, ok := g.Metrics()["caddy_callback_"+name]; !ok || got != want[name] {
				return fmt.Errorf("it is %v (%v), want %v", got, ok, want[name])
			}
			return nil
		})
	}
}

// Memory returns the resident memory of the process in bytes.
func (g *Gateway) Memory() int64 {
	g.T.Helper()
	for name, value := range g.Metrics() {
		if name == "process_resident_memory_bytes" {
			return int64(value)
		}
	}
	g.T.Fatal("the status of the process has no resident memory")
	return 0
}

// Stored reports whether the text is anywhere in the gateway's store on disk.
func (g *Gateway) Stored(text string) bool {
	g.T.Helper()
	found := false
	err := filepath.WalkDir(g.Folder(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found = found || bytes.Contains(data, []byte(text))
		return err
	})
	if err != nil {
		g.T.Fatal(err)
	}
	return found
}

// Attempts returns the logged attempts of a task, or of all tasks if id is empty.
func (g *Gateway) Attempts(id string) []Attempt {
	g.T.Helper()
	var found []Attempt
	lines := bufio.NewScanner(strings.NewReader(g.Log.String()))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Msg string `json:"msg"`
			Attempt
		}
		if json.Unmarshal(lines.Bytes(), &line) != nil || line.Msg != "delivery attempted" {
			continue
		}
		if id == "" || line.TaskID == id {
			found = append(found, line.Attempt)
		}
	}
	if err := lines.Err(); err != nil {
		g.T.Fatal(err)
	}
	return found
}

// Attempted waits until the log has n attempts of a task and returns them.
func (g *Gateway) Attempted(id string, n int) (found []Attempt) {
	g.T.Helper()
	g.Eventually(fmt.Sprintf("%d attempts", n), func() error {
		if found = g.Attempts(id); len(found) < n {
			return fmt.Errorf("%d are logged", len(found))
		}
		return nil
	})
	return found
}

// OpenStore opens the store folder of a stopped gateway, without limits. The store is
// closed after the test at the latest. It must be closed before the gateway starts.
func (g *Gateway) OpenStore() engine.Engine {
	g.T.Helper()
	e, err := sqlite.Open(g.T.Context(), sqlite.Config{Folder: g.Folder(), Sync: time.Second, Settings: engine.Settings{KeepResults: true}})
	if err != nil {
		g.T.Fatal(err)
	}
	g.T.Cleanup(func() { g.CloseStore(e) })
	return e
}

// CloseStore closes a store opened by OpenStore. It may be called twice.
func (g *Gateway) CloseStore(e engine.Engine) {
	g.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := e.Close(ctx); err != nil {
		g.T.Error(err)
	}
}

// DeadLetter is a dead task and its result.
type DeadLetter struct {
	Record *task.Record
	Result string
}

// Dead returns the dead letters of a gateway that has stopped, by task.
func (g *Gateway) Dead() map[string]DeadLetter {
	g.T.Helper()
	e := g.OpenStore()
	defer g.CloseStore(e)
	page, err := e.List(g.T.Context(), engine.Filter{States: []task.State{task.Dead}}, "", 1000)
	if err != nil {
		g.T.Fatal(err)
	}
	found := make(map[string]DeadLetter)
	for _, rec := range page.Tasks {
		letter := DeadLetter{Record: rec}
		if rec.Result != nil {
			body, err := e.Open(g.T.Context(), rec.ID, engine.ResultBody)
			if err != nil {
				g.T.Fatal(err)
			}
			data, err := io.ReadAll(body)
			if err = errors.Join(err, body.Close()); err != nil {
				g.T.Fatal(err)
			}
			letter.Result = string(data)
		}
		found[rec.ID] = letter
	}
	return found
}
