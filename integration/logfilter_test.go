package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// configurationOfTheLogFilter returns the configuration in docs/security.md. Its site
// gets the gateway's address and proxies to app.
func configurationOfTheLogFilter(t *testing.T, g *gatewaytest.Gateway, app string) string {
	t.Helper()
	_, section, found := strings.Cut(read(t, "docs/security.md"), "\n## Keeping URLs out of Caddy's log\n")
	_, text, hasBlock := strings.Cut(section, "```caddyfile\n")
	text, _, ends := strings.Cut(text, "```\n")
	if !found || !hasBlock || !ends {
		t.Fatal("docs/security.md has no configuration of a log filter")
	}
	for old, replacement := range map[string]string{
		"{\n\tlog default":  "{\n\tadmin " + g.Admin + "\n\tcallback {\n" + gatewaytest.ToLocal + "\n}\n\tlog default",
		"\nexample.com {\n": "\nhttp://" + g.Addr + " {\n",
		"app:9000":          app,
	} {
		if strings.Count(text, old) != 1 {
			t.Fatalf("%q is not in the configuration once:\n%s", old, text)
		}
		text = strings.Replace(text, old, replacement, 1)
	}
	return text
}

// logged returns the lines of a log with a message.
func logged(t *testing.T, log, message string) (found []string) {
	t.Helper()
	for line := range strings.Lines(log) {
		var entry struct {
			Message string `json:"msg"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Message == message {
			found = append(found, line)
		}
	}
	return found
}

// TestDocsLogFilterHidesCallbackURLs uses the configuration in docs/security.md.
// Without its filters both lines contain secrets.
func TestDocsLogFilterHidesCallbackURLs(t *testing.T) {
	t.Parallel()
	const access, aborted = "handled request", "aborting with incomplete response"
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "the beginning")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	for name, filtered := range map[string]bool{"with the filters": true, "without them": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcv := gatewaytest.NewReceiver(t, nil)
			g := gatewaytest.New(t, "", "")
			text := configurationOfTheLogFilter(t, g, app)
			if !filtered {
				text = regexp.MustCompile(`(?m)^\s*request>.*\n`).ReplaceAllString(text, "")
			}
			if err := os.WriteFile(g.File, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			g.Start()
			_, _, err := gatewaytest.Send(http.MethodPost, g.URL("/run?token=planted-own-query"), strings.NewReader("{}"),
				"Content-Type", "application/json", "X-Callback-Url", rcv.URL+"/hook?token=planted-query")
			if err == nil {
				t.Error("the response did not break off")
			}
			if c := rcv.Next(t); c.Status() != "FAILED" {
				t.Errorf("the callback has the status %s", c.Status())
			}
			for _, message := range []string{access, aborted} {
				g.Eventually("the log has "+message, func() error {
					if len(logged(t, g.Log.String(), message)) == 0 {
						return fmt.Errorf("not yet:\n%s", g.Log.String())
					}
					return nil
				})
				if !filtered && len(leaks(logged(t, g.Log.String(), message)[0])) == 0 {
					t.Errorf("the line %s has no field to filter: %s", message, logged(t, g.Log.String(), message)[0])
				}
			}
			if filtered {
				wantNoSecrets(t, "the log", g.Log.String())
			}
		})
	}
}
