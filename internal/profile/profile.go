// Package profile knows the contracts of other services whose callbacks the
// gateway can make: which headers they carry, and what is in them.
package profile

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// The profiles, as task.Callback.Profile names them.
const (
	OpenFaaS = "openfaas"
	Beam2    = "beam2"
)

// The headers of OpenFaaS's callbacks.
const (
	FunctionStatus   = "X-Function-Status"
	FunctionName     = "X-Function-Name"
	FunctionDuration = "X-Duration-Seconds"
)

// headers are what each profile sets in a callback.
var headers = map[string][]string{
	OpenFaaS: {FunctionStatus, FunctionName, FunctionDuration},
	Beam2:    {webhook.HeaderBeamTimestamp, webhook.HeaderBeamSignature},
}

// Sets reports whether a profile sets the header.
func Sets(profile, header string) bool {
	for _, set := range headers[profile] {
		if strings.EqualFold(set, header) {
			return true
		}
	}
	return false
}

// Reserved reports whether a header of a callback is the gateway's to set,
// whatever the profile.
func Reserved(header string) bool {
	header = strings.ToLower(header)
	switch header {
	case "content-type", "content-length", "content-encoding", "transfer-encoding", "host", "connection",
		"trailer", "te", "upgrade", "idempotency-key", "keep-alive", "proxy-connection":
		return true
	}
	return strings.HasPrefix(header, "webhook-") || strings.HasPrefix(header, "callback-")
}

// SetHeader adds the headers of the task's profile to those of a callback. Call it
// last: headers that are there already are not replaced by the function's.
func SetHeader(h http.Header, rec *task.Record) {
	if rec.Callback.Profile != OpenFaaS {
		return // Beam2 has signatures only
	}
	addFunctionHeader(h, rec)
	h.Set(FunctionStatus, strconv.Itoa(functionStatus(rec)))
	h.Set(FunctionDuration, strconv.FormatFloat(duration(rec).Seconds(), 'f', 6, 64))
	if rec.Callback.Function != "" {
		h.Set(FunctionName, rec.Callback.Function)
	}
}

// addFunctionHeader adds the header of the function's response, as OpenFaaS does.
// A function cannot set what the gateway says, nor a signature.
func addFunctionHeader(h http.Header, rec *task.Record) {
	if rec.Result == nil {
		return
	}
	for name, values := range rec.Result.Header {
		key := http.CanonicalHeaderKey(name)
		if len(h[key]) == 0 && !Reserved(key) && key != "Expect" && key != "User-Agent" {
			h[name] = values
		}
	}
}

// functionStatus returns the status code of the function's response. As in
// OpenFaaS it is 503 if there was no complete response, and 504 after a timeout.
func functionStatus(rec *task.Record) int {
	switch {
	case rec.Status == task.TimedOut:
		return http.StatusGatewayTimeout
	case rec.Result == nil || rec.UpstreamStatus == 0:
		return http.StatusServiceUnavailable
	default:
		return rec.UpstreamStatus
	}
}

// duration returns how long the task ran, 0 if it never did. It is never negative:
// wall clocks may have been set meanwhile, or be those of two nodes.
func duration(rec *task.Record) time.Duration {
	if rec.StartedAt.IsZero() || rec.FinishedAt.IsZero() {
		return 0
	}
	return max(0, rec.FinishedAt.Sub(rec.StartedAt))
}
