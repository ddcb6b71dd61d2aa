package callback

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// linkResults is the value of the option large_results that posts links.
const linkResults = "link"

const (
	defaultMaxKept = 1 << 30
	// mostKept bounds max_kept: one result must not be able to fill any disk.
	mostKept = 1 << 40
)

// parseLargeResults parses
//
//	large_results link [<url>]
func (h *Handler) parseLargeResults(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	switch {
	case len(args) == 0:
		return d.Err("large_results takes link and, optionally, the URL of task_status")
	case args[0] != linkResults:
		return d.Errf("large_results: unknown value %q; expected link", args[0])
	case len(args) > 2:
		return d.Errf("large_results link takes one URL; unexpected %q", args[2])
	case len(args) == 2:
		h.ResultsURL = args[1]
		if err := checkResultsURL(args[1]); err != nil && !hasPlaceholder(args[1]) {
			return d.Errf("large_results: %v", err)
		}
	}
	h.LargeResults = linkResults
	return nil
}

// checkResultsURL checks the URL of a task_status handler.
func checkResultsURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.ContainsAny(raw, "?#") {
		return fmt.Errorf("%q is not a URL such as https://example.com/tasks", raw)
	}
	return nil
}

// validateLargeResults checks the options of large results.
func (h *Handler) validateLargeResults() error {
	switch {
	case h.LargeResults == "" && (h.ResultsURL != "" || h.written.MaxKept != 0):
		return errors.New("results_url and max_kept need large_results link")
	case h.LargeResults == "":
		return nil
	case h.LargeResults != linkResults:
		return fmt.Errorf("large_results: unknown value %q; expected link", h.LargeResults)
	case h.MaxKept < 0 || h.MaxKept > mostKept:
		return fmt.Errorf("max_kept must be from 0 to %d bytes", int64(mostKept))
	case !*h.app.KeepResults:
		return errors.New("large_results link needs keep_results on; with keep_results off, a result is removed once its link was posted")
	case h.ResultsURL != "":
		if err := checkResultsURL(h.ResultsURL); err != nil {
			return fmt.Errorf("results_url: %w", err)
		}
	}
	return nil
}

// linkOf returns how the callback of a request links to a large result, or nil if large
// results are truncated. repl has the request's placeholders.
func (h *Handler) linkOf(repl *caddy.Replacer) *task.Link {
	if h.LargeResults != linkResults {
		return nil
	}
	at := h.ResultsURL
	if at == "" {
		origin := originOf(repl)
		if origin == "" {
			return nil // a schedule's request has no client that named a host
		}
		at = origin + h.app.statusPaths[0]
	}
	return &task.Link{URL: at, MaxKept: h.MaxKept, Valid: time.Duration(h.app.Retention)}
}

// keepLarge makes the capture of a response keep a large result whole, if the callback
// links to it. callback is nil if the task has none.
func (a *App) keepLarge(o *capture.ResponseOptions, callback *task.Callback) {
	if callback != nil && callback.Link != nil {
		o.MaxLarge, o.Folder = callback.Link.MaxKept, a.spool
	}
}

// maxHost bounds the host of a request that is stored for a link, in bytes. It is longer
// than any host name with a port.
const maxHost = 300

// originOf returns the scheme and the host of a request, or "" if there is no valid host.
// The client chooses the host, unless Caddy's site names it.
func originOf(repl *caddy.Replacer) string {
	if repl == nil {
		return ""
	}
	scheme, _ := repl.GetString("http.request.scheme")
	host, _ := repl.GetString("http.request.hostport")
	u, err := url.Parse(scheme + "://" + host)
	if err != nil || host == "" || len(host) > maxHost || u.Host != host {
		return ""
	}
	return u.String()
}

// checkLinks checks that there is a task_status for the links of large results. Only
// after provisioning are all handlers known.
func (a *App) checkLinks() error {
	own := slices.ContainsFunc(a.linking, func(h *Handler) bool { return h.ResultsURL == "" })
	paths := slices.Compact(slices.Sorted(slices.Values(a.statusPaths)))
	const where = "write its URL: large_results link https://example.com/tasks"
	switch {
	case len(a.linking) == 0:
	case len(paths) == 0:
		return errors.New("large_results link: receivers fetch results from a task_status, and there is none; add one, such as task_status /tasks")
	case own && len(paths) > 1:
		return fmt.Errorf("large_results link: there is a task_status at %s; choose one and %s", strings.Join(paths, " and at "), where)
	case own && paths[0] == "":
		return fmt.Errorf("large_results link: the path of task_status is not known; %s", where)
	}
	return nil
}
