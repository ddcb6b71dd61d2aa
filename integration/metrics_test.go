package integration

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// metrics scrapes Caddy's admin endpoint: values by name with labels.
func (g *gateway) metrics() map[string]float64 {
	g.t.Helper()
	resp, text, err := send(http.MethodGet, "http://"+g.admin+"/metrics", http.NoBody)
	if err != nil || resp.StatusCode != http.StatusOK {
		g.t.Fatalf("scraping: %v %v", resp, err)
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

// metered waits until a metric has a value.
func (g *gateway) metered(name string, want float64) {
	g.t.Helper()
	g.eventually(name, func() error {
		if got, ok := g.metrics()[name]; !ok || got != want {
			return fmt.Errorf("it is %v (%v), not %v", got, ok, want)
		}
		return nil
	})
}
