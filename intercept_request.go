package callback

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"go.uber.org/zap"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
)

// mayBeTask says whether a request could be made a task at all.
func mayBeTask(r *http.Request) bool {
	switch r.Method {
	case http.MethodHead, http.MethodOptions, http.MethodConnect:
		return false
	}
	return true
}

// isUpgrade says whether a server may answer a request by going on in another
// protocol (RFC 9110, section 7.8). A client that only names one, without the
// option of Connection, or with a body to be answered, gets a response.
//
// An offer of HTTP/2 or TLS is not meant so: clients make it with requests like any
// other, Java's own and curl's --http2 with each, and a server that ignores it
// answers as always (RFC 9113, section 3.1; RFC 2817, section 3.1).
func isUpgrade(r *http.Request) bool {
	offers := r.Header["Upgrade"]
	if len(offers) == 0 || r.Method != http.MethodGet || !r.ProtoAtLeast(1, 1) || !hasOption(r.Header, "upgrade") {
		return false
	}
	for _, line := range offers {
		for offer := range strings.SplitSeq(line, ",") {
			protocol, _, _ := strings.Cut(strings.TrimSpace(offer), "/")
			if protocol != "" && !strings.EqualFold(protocol, "h2c") && !strings.EqualFold(protocol, "TLS") {
				return true
			}
		}
	}
	return false
}

// passOver takes out of a task's request what its client offered to do with the
// connection: if the endpoint took it up, there would be no response.
func passOver(header http.Header) {
	if len(header["Upgrade"]) == 0 {
		return
	}
	header.Del("Upgrade")
	header.Del("Http2-Settings")
	header.Del("Connection")
}

// findURL returns the value of the member that names a URL in the request's body,
// "" if there is none. The body is put back byte for byte. The error is a *problem:
// the request must be refused. w is the response to the request, nil if there is
// none.
func (h *Handler) findURL(w http.ResponseWriter, r *http.Request) (string, bodies.Reason, error) {
	value, reason, err := bodies.Find(r, bodies.Options{
		Field: h.Field, Limit: h.MaxRequest, Folder: h.app.spool, Response: w,
	})
	return value, reason, problemOf(err)
}

// problemOf makes a *problem of what package capture refuses a request for.
func problemOf(err error) error {
	if err == nil {
		return nil
	}
	var refusal *bodies.Refusal
	if errors.As(err, &refusal) {
		return &problem{refusal.Status, refusal.Detail}
	}
	return err
}

// hopsReached is the reason for a request that too many callbacks led to.
const hopsReached bodies.Reason = "hops"

// skipped counts a request that could have been a task and is none.
func (h *Handler) skipped(r *http.Request, reason bodies.Reason) {
	h.app.metrics.taskSkipped(reason)
	if c := h.log.Check(zap.DebugLevel, "request is no task"); c != nil {
		c.Write(zap.String("reason", string(reason)), zap.String("method", r.Method), zap.String("path", r.URL.Path))
	}
}

// release frees what is kept of a request's body, if anything, once its handlers have
// returned. After an error, those of handle_errors may still read it, until the
// client's request ends.
func release(client context.Context, body *bodies.Body, err error) {
	switch {
	case body == nil:
	case err == nil:
		body.Release()
	default:
		context.AfterFunc(client, body.Release)
	}
}
