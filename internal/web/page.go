// Package web holds the pages that people look at, each with the JSON of the
// same things for programs: the inbox, which shows callbacks as they come, and
// the dashboard, on which operators see and steer the tasks.
//
//	inbox := web.NewInbox(web.InboxConfig{})
//	defer inbox.Close()
//	http.Handle("/inbox/", inbox)
//
// A page is one document without external assets, so that it works wherever it
// is mounted, offline, and under a Content-Security-Policy that permits its own
// script and style by hash and nothing else. What came from the network gets
// into it as text only. (page.go)
package web

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html"
	"net/http"
	"strings"
)

var (
	//go:embed page/base.css
	baseCSS string
	//go:embed page/base.js
	baseJS string
	//go:embed page/inbox.html
	inboxHTML string
	//go:embed page/inbox.css
	inboxCSS string
	//go:embed page/inbox.js
	inboxJS string
)

// page is a document as it is sent.
type page struct {
	document string
	policy   string
}

// newPage puts style and script into a document, and the escaped values where
// it has their names in double braces.
func newPage(document, style, script string, values map[string]string) page {
	for name, value := range values {
		document = strings.ReplaceAll(document, "{{"+name+"}}", html.EscapeString(value))
	}
	document = strings.Replace(document, "<style></style>", "<style>"+style+"</style>", 1)
	document = strings.Replace(document, "<script></script>", "<script>"+script+"</script>", 1)
	return page{document: document, policy: strings.Join([]string{
		"default-src 'none'",
		"script-src " + hashSource(script),
		"style-src " + hashSource(style),
		"connect-src 'self'", // the live stream
		"img-src data:",      // the icon
		"base-uri 'none'",
		"form-action 'none'",
		// Framed by another site, its buttons could be clicked unseen.
		"frame-ancestors 'none'",
		// The script cannot make HTML of text, even by mistake.
		"require-trusted-types-for 'script'",
		"trusted-types 'none'",
	}, "; ")}
}

// hashSource names a script or style by its content. A hash rather than 'self':
// the host of an inbox serves other things too, uploads perhaps.
func hashSource(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (p page) serve(w http.ResponseWriter) {
	w.Header().Set("Content-Security-Policy", p.policy)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(p.document)) // an error is the reader's going away
}

// setSafeHeaders sets what every answer of this package has: a page, and bytes
// that some stranger sent and a browser must not take for one.
func setSafeHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
}
