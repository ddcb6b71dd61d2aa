package web_test

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

func dashboardPage(method string) *httptest.ResponseRecorder {
	return serve(web.DashboardPage(), method, "/ops", nil, "Accept", "text/html")
}

func TestDashboardContentSecurityPolicy(t *testing.T) {
	t.Parallel()
	w := dashboardPage(http.MethodGet)
	hash := func(tag string) string {
		found := regexp.MustCompile(`(?s)<`+tag+`>(.*?)</`+tag+`>`).FindAllStringSubmatch(w.Body.String(), -1)
		if len(found) != 1 || len(found[0][1]) < 1000 {
			t.Fatalf("the page has %d <%s>", len(found), tag)
		}
		sum := sha256.Sum256([]byte(found[0][1]))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	want := "default-src 'none'; script-src " + hash("script") + "; style-src " + hash("style") +
		"; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
		"; require-trusted-types-for 'script'; trusted-types 'none'"
	if got := w.Header().Get("Content-Security-Policy"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff",
		"Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestDashboardObeysContentSecurityPolicy(t *testing.T) {
	t.Parallel()
	page := dashboardPage(http.MethodGet).Body.String()
	document := regexp.MustCompile(`(?s)<(script|style)>.*?</(script|style)>`).ReplaceAllString(page, "")
	for what, pattern := range map[string]string{
		"an inline handler": `(?i)<[^>]*\son[a-z]+\s*=`,
		"an inline style":   `(?i)<[^>]*\sstyle\s*=`,
		"an external asset": `(?i)\s(src|href)="[^#d]`,
	} {
		if found := regexp.MustCompile(pattern).FindString(document); found != "" {
			t.Errorf("%s: %s", what, found)
		}
	}
	for _, sink := range []string{
		"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "cssText", ".style", "@import", "url(",
	} {
		if strings.Contains(page, sink) {
			t.Errorf("the page uses %s", sink)
		}
	}
	// The script sets attributes in one place only, from numbers and its own constants.
	if n := strings.Count(page, "setAttribute"); n != 1 {
		t.Errorf("the page sets attributes in %d places", n)
	}
}

func TestDashboardPageIsReadOnly(t *testing.T) {
	t.Parallel()
	for method, want := range map[string]int{
		http.MethodGet: http.StatusOK, http.MethodHead: http.StatusOK,
		http.MethodPost: http.StatusMethodNotAllowed, http.MethodDelete: http.StatusMethodNotAllowed,
	} {
		w := dashboardPage(method)
		if w.Code != want {
			t.Errorf("%s: got %d, want %d", method, w.Code, want)
		}
		if allow := w.Header().Get("Allow"); (allow == "GET, HEAD") != (want == http.StatusMethodNotAllowed) {
			t.Errorf("%s: Allow is %q", method, allow)
		}
	}
}
