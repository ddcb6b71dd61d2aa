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

// The paths under which OpenFaaS's clients call a function.
const (
	functionPath      = "/function/"
	asyncFunctionPath = "/async-function/"
)

type openFaaS struct{ none }

// Traits implements [Profile]. A callback without a response needs no body: the status
// header says that no function answered.
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
	// OpenFaaS permits only these characters in a function's name. The name is sent in
	// a header.
	strange := strings.ContainsFunc(name, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.'
	})
	dots := strings.Trim(name, ".") == "" // receivers may use the name in a path
	if !ok || strange || dots || len(name) > maxFunctionName {
		return ""
	}
	return name
}

// maxFunctionName is longer, in bytes, than Kubernetes permits the names of a service
// and its namespace to be together. The name is stored in the task's record.
const maxFunctionName = 128

// BlockURI implements [Profile]: OpenFaaS's queue worker calls a function under its
// synchronous path.
func (openFaaS) BlockURI(uri string) string {
	if rest, ok := strings.CutPrefix(uri, asyncFunctionPath); ok {
		return functionPath + rest
	}
	return uri
}

// SetHeader implements [Profile]. Call it last: the function's headers do not replace
// headers that are already set.
func (openFaaS) SetHeader(h http.Header, rec *task.Record, _ time.Time) {
	addFunctionHeader(h, rec)
	h.Set(functionStatusHeader, strconv.Itoa(functionStatus(rec)))
	h.Set(functionDurationHeader, strconv.FormatFloat(duration(rec).Seconds(), 'f', 6, 64))
	if rec.Callback.Function != "" {
		h.Set(functionNameHeader, rec.Callback.Function)
	}
}

// addFunctionHeader adds the headers of the function's response, as OpenFaaS does. A
// function cannot set the gateway's own headers or a signature.
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

// functionStatus returns the status code of the function's response. As in OpenFaaS, it
// is 503 if there was no complete response, and 504 after a timeout.
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

// duration returns how long the task ran, and 0 if it never ran. It is never negative:
// the wall clock may have been set meanwhile, or the two times may come from two nodes.
func duration(rec *task.Record) time.Duration {
	if rec.StartedAt.IsZero() || rec.FinishedAt.IsZero() {
		return 0
	}
	return max(0, rec.FinishedAt.Sub(rec.StartedAt))
}
