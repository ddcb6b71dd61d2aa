package profile

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// OpenFaaS is the name of the profile of OpenFaaS's asynchronous functions.
const OpenFaaS = "openfaas"

// The headers of OpenFaaS's callbacks.
const (
	functionStatusHeader   = "X-Function-Status"
	functionNameHeader     = "X-Function-Name"
	functionDurationHeader = "X-Duration-Seconds"
)

// The paths that OpenFaaS's clients know a function by.
const (
	functionPath      = "/function/"
	asyncFunctionPath = "/async-function/"
)

type openFaaS struct{ none }

// Traits implements [Profile]. Its status header says that there was no function to
// answer, so that such a callback needs no body.
func (openFaaS) Traits() Traits {
	return Traits{
		Name: OpenFaaS, FromHeader: "X-Callback-Url", Format: "raw", TaskHeader: "X-Call-Id",
		KeepHeader: true, EmptyResult: true, EmptyAccepted: true,
		Headers: []string{functionStatusHeader, functionNameHeader, functionDurationHeader},
	}
}

// Function implements [Profile].
func (openFaaS) Function(path string) string {
	rest, ok := strings.CutPrefix(path, asyncFunctionPath)
	if !ok {
		rest, ok = strings.CutPrefix(path, functionPath)
	}
	name, _, _ := strings.Cut(rest, "/")
	// What OpenFaaS lets a function be called. It goes into a header.
	strange := strings.ContainsFunc(name, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.'
	})
	dots := strings.Trim(name, ".") == "" // receivers may make a path of it
	if !ok || strange || dots || len(name) > maxFunctionName {
		return ""
	}
	return name
}

// maxFunctionName is more than Kubernetes lets a service and its namespace have
// together, in bytes. The name is kept in the task's record.
const maxFunctionName = 128

// BlockURI implements [Profile]: OpenFaaS's queue worker calls a function under its
// synchronous path.
func (openFaaS) BlockURI(uri string) string {
	if rest, ok := strings.CutPrefix(uri, asyncFunctionPath); ok {
		return functionPath + rest
	}
	return uri
}

// SetHeader implements [Profile]. Call it last: headers that are there already are
// not replaced by the function's.
func (openFaaS) SetHeader(h http.Header, rec *task.Record, _ time.Time) {
	addFunctionHeader(h, rec)
	h.Set(functionStatusHeader, strconv.Itoa(functionStatus(rec)))
	h.Set(functionDurationHeader, strconv.FormatFloat(duration(rec).Seconds(), 'f', 6, 64))
	if rec.Callback.Function != "" {
		h.Set(functionNameHeader, rec.Callback.Function)
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
