package integration

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

const troubleshooting = "docs/troubleshooting.md"

// blockAfter returns the first block of a language below a heading.
func blockAfter(t *testing.T, page, heading, lang string) string {
	t.Helper()
	_, section, found := strings.Cut(read(t, page), "\n## "+heading+"\n")
	_, text, opened := strings.Cut(section, "\n```"+lang+"\n")
	text, _, closed := strings.Cut(text, "\n```\n")
	if !found || !opened || !closed {
		t.Fatalf("%s has no %s below %q", page, lang, heading)
	}
	return text + "\n"
}

func TestTroubleshootingLocalhost(t *testing.T) {
	t.Parallel()
	const heading, body = "400 on localhost", `{"callback_url":"http://localhost:8099/"}`
	refusing := gatewaytest.Start(t, "", "callback\nrespond ok")
	resp, text := refusing.Post("/", body)
	if want := blockAfter(t, troubleshooting, heading, "json"); resp.StatusCode != http.StatusBadRequest || text != want {
		t.Errorf("without allow: %s %s, want 400 %s", resp.Status, text, want)
	}

	fix := blockAfter(t, troubleshooting, heading, "caddyfile")
	fix = strings.TrimPrefix(strings.TrimSuffix(fix, "\t}\n}\n"), "{\n\tcallback {\n")
	allowing := gatewaytest.Start(t, fix, "callback\nrespond ok")
	if resp, text := allowing.Post("/", body); resp.Header.Get("beam-task-id") == "" {
		t.Errorf("with allow: %s %s", resp.Status, text)
	}
}

func TestTroubleshootingCurl(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), "callback\nrespond ok")
	real := strings.NewReplacer("https://example.com", g.URL(""), "https://c.example", rcv.URL)
	const setType = " -H 'Content-Type: application/json'"
	seen := 0
	for _, b := range blocks(t, troubleshooting) {
		args, ok := strings.CutPrefix(strings.TrimSpace(b.text), "curl ")
		if b.lang != "sh" || !ok {
			continue
		}
		seen++
		answer := curlByHand(t, shellWords(t, real.Replace(args)))
		if !strings.Contains(answer, "Beam-Task-Id: ") {
			t.Errorf("%v: no task: %s", b, answer)
		}
		rcv.Next(t)
		if bare := strings.Replace(args, setType, "", 1); bare != args {
			if answer := curlByHand(t, shellWords(t, real.Replace(bare))); strings.Contains(answer, "Beam-Task-Id: ") {
				t.Errorf("%v: without the header it is a task, too: %s", b, answer)
			}
		}
	}
	if seen != 2 {
		t.Errorf("%d commands were run", seen)
	}
}

func TestTroubleshootingPolling(t *testing.T) {
	t.Parallel()
	site := blockAfter(t, troubleshooting, "An empty 200 when polling", "caddyfile")
	site = strings.TrimPrefix(strings.TrimSuffix(site, "}\n"), "example.com {\n")
	site = strings.ReplaceAll(site, "reverse_proxy app:9000", "respond ok")
	for name, test := range map[string]struct {
		site string
		body string // the response to polling, or a part
	}{
		"the fix":           {site, `"state":`},
		"without the tasks": {strings.Replace(site, " /train/*", "", 1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.Start(t, "", test.site)
			resp, _ := g.Post("/train", `{}`)
			polled, body := g.Do(http.MethodGet, resp.Header.Get("Location"), "")
			if polled.StatusCode != http.StatusOK || (body == "") != (test.body == "") || !strings.Contains(body, test.body) {
				t.Errorf("polling %q answers %s %q", resp.Header.Get("Location"), polled.Status, body)
			}
		})
	}
}
