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

func pageOf(config web.InboxConfig) *httptest.ResponseRecorder {
	return serve(web.NewInbox(config), http.MethodGet, "/inbox", nil, "Accept", "text/html")
}

func TestInboxContentSecurityPolicy(t *testing.T) {
	t.Parallel()
	w := pageOf(web.InboxConfig{})
	page := w.Body.String()
	hash := func(tag string) string {
		found := regexp.MustCompile(`(?s)<`+tag+`>(.*?)</`+tag+`>`).FindAllStringSubmatch(page, -1)
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
}

func TestInboxObeysContentSecurityPolicy(t *testing.T) {
	t.Parallel()
	page := pageOf(web.InboxConfig{}).Body.String()
	document := regexp.MustCompile(`(?s)<(script|style)>.*?</(script|style)>`).ReplaceAllString(page, "")
	for what, pattern := range map[string]string{
		"an inline handler":    `(?i)<[^>]*\son[a-z]+\s*=`,
		"an inline style":      `(?i)<[^>]*\sstyle\s*=`,
		"an external asset":    `(?i)\s(src|href)="[^#d]`,
		"unfilled placeholder": `{{`,
	} {
		if found := regexp.MustCompile(pattern).FindString(document); found != "" {
			t.Errorf("%s: %s", what, found)
		}
	}
	for _, sink := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "cssText", "setAttribute", "@import", "url("} {
		if strings.Contains(page, sink) {
			t.Errorf("the page uses %s", sink)
		}
	}
}

func TestConfiguredNamesAreEscaped(t *testing.T) {
	t.Parallel()
	page := pageOf(web.InboxConfig{Keep: 7, TaskHeader: `"><script>alert(1)</script>`, StatusHeader: "x&y", ForwardTo: []string{"http://localhost:3000"}}).Body.String()
	want := `<body data-keep="7" data-task-header="&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;" data-status-header="x&amp;y" data-forward-to="http://localhost:3000">`
	if !strings.Contains(page, want) {
		t.Errorf("the page lacks %s", want)
	}
}
