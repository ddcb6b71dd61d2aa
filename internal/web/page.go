// Package web serves the pages for people, and the same data as JSON for programs. The
// inbox shows callbacks as they are received. On the dashboard, operators see and
// control the tasks.
//
//	inbox := web.NewInbox(web.InboxConfig{})
//	defer inbox.Close()
//	http.Handle("/inbox/", inbox)
//
// A page is one document without external assets. It works at any path, offline, and
// under a Content-Security-Policy that permits only its own script and style by hash.
// Data from the network is inserted as text only. (page.go)
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

// page is a document with its headers.
type page struct {
	document string
	policy   string
}

// newPage inserts style and script into a document, and the escaped values at their
// names in double braces.
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
		"connect-src 'self'", // for the live stream
		"img-src data:",      // for the icon
		"base-uri 'none'",
		"form-action 'none'",
		// Without this, another site could frame the page and have its buttons clicked
		// unseen (clickjacking).
		"frame-ancestors 'none'",
		// The script cannot create HTML from text, even by mistake.
		"require-trusted-types-for 'script'",
		"trusted-types 'none'",
	}, "; ")}
}

// hashSource returns the CSP source of a script or style by its content. A hash is
// stricter than 'self': the host of an inbox also serves other things, perhaps uploads.
func hashSource(content string) string {
	sum := sha256.Sum256([]byte(content))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (p page) serve(w http.ResponseWriter) {
	w.Header().Set("Content-Security-Policy", p.policy)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(p.document)) // an error means that the client disconnected
}

// setSafeHeaders sets the headers of every response of this package. Browsers must not
// take bytes from strangers for a page.
func setSafeHeaders(h http.Header) {
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
}
