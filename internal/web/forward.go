package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// forwardTimeout bounds one forwarding, because the viewer waits for it.
	forwardTimeout = 15 * time.Second
	// forwardShown is how much of the receiver's response is shown.
	forwardShown = 1 << 10
	// maxForwardRequest is an upper bound of the length of a URL.
	maxForwardRequest = 16 << 10
)

// notForwarded are the hop-by-hop headers, and those that the new request sets itself.
var notForwarded = []string{
	"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade",
	"content-length", "host", "accept-encoding",
}

// ParseForwardOrigin checks that s is the origin of a URL, such as
// http://localhost:3000, and returns it in lower case.
func ParseForwardOrigin(s string) (string, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return "", fmt.Errorf("%q is not an origin such as http://localhost:3000", s)
	case u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q has more than a scheme, a host and a port; any path below them is allowed", s)
	}
	return strings.ToLower(u.Scheme + "://" + u.Host), nil
}

// forwardWanted returns the number in a POST's query ?forward=n. If no origins are
// configured, such a request is an ordinary callback.
func (in *Inbox) forwardWanted(r *http.Request) (number uint64, ok bool) {
	digits, ok := strings.CutPrefix(r.URL.RawQuery, "forward=")
	if !ok || r.Method != http.MethodPost || len(in.config.ForwardTo) == 0 {
		return 0, false
	}
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, err == nil
}

// forwarded is the outcome of forwarding a callback.
type forwarded struct {
	StatusCode int    `json:"status_code,omitempty"`
	DurationMS int64  `json:"duration_ms"`
	Response   string `json:"response,omitempty"`
	Error      string `json:"error,omitempty"`
}

// forward sends a callback unchanged to a URL of an allowed origin. Without this
// restriction, anybody who can reach the inbox could send requests from inside the
// network (SSRF).
func (in *Inbox) forward(w http.ResponseWriter, r *http.Request, number uint64) {
	// Without this check, a page of another site could forward callbacks with the
	// credentials of its viewer.
	if err := in.foreign.Check(r); err != nil {
		http.Error(w, "requests from other sites cannot forward callbacks", http.StatusForbidden)
		return
	}
	c := in.memory.get(scopeOf(r), number)
	if c == nil {
		http.Error(w, "no such callback: it was not received, or was removed", http.StatusNotFound)
		return
	}
	var wanted struct {
		URL string `json:"url"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, maxForwardRequest)).Decode(&wanted); err != nil {
		http.Error(w, `the body must be JSON: {"url": "http://…"}`, http.StatusBadRequest)
		return
	}
	u, err := url.Parse(wanted.URL)
	if err != nil || u.User != nil || !slices.Contains(in.config.ForwardTo, strings.ToLower(u.Scheme+"://"+u.Host)) {
		http.Error(w, "the URL is not below one that forward_to allows: "+strings.Join(in.config.ForwardTo, ", "), http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(sendOn(r.Context(), c, u)) // an error means that the client disconnected
}

// forwarder opens a connection for each callback. It does not follow redirects, which
// could lead to another origin.
var forwarder = &http.Client{
	Timeout:       forwardTimeout,
	Transport:     &http.Transport{DisableKeepAlives: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func sendOn(ctx context.Context, c *callback, to *url.URL) (f forwarded) {
	begun := time.Now()
	defer func() { f.DurationMS = time.Since(begun).Milliseconds() }()
	req, err := http.NewRequestWithContext(ctx, c.Method, to.String(), bytes.NewReader(c.body))
	if err != nil {
		return forwarded{Error: err.Error()}
	}
	for _, h := range c.Headers {
		if !slices.Contains(notForwarded, h.Name) {
			req.Header.Add(h.Name, h.Value)
		}
	}
	resp, err := forwarder.Do(req)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // without the URL, which the viewer knows
		}
		return forwarded{Error: err.Error()}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, forwardShown))
	f = forwarded{StatusCode: resp.StatusCode, Response: strings.ToValidUTF8(string(answer), "\uFFFD")}
	if err != nil {
		f.Error = err.Error()
	}
	return f
}
