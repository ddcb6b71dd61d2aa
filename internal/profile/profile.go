// Package profile has the contracts of other services whose clients and receivers
// the gateway serves as they are: how a request asks for a callback, and what the
// callback carries.
//
// A profile is one file of this package and a line in all.
package profile

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// all are the profiles that there are.
var all = []Profile{beam2{}, openFaaS{}}

// Profile is the contract of one service. Its methods can be called from several
// goroutines at once.
type Profile interface {
	// Traits returns what does not depend on a task.
	Traits() Traits
	// Function returns the name of the function that a request for a path calls. It
	// is kept with the task; empty if the service knows no functions.
	Function(path string) string
	// BlockURI returns the path and query that a queue's block sees for a URI.
	BlockURI(uri string) string
	// SetHeader adds headers to those of a callback that is sent at a time. Headers
	// that are there already stay.
	SetHeader(h http.Header, rec *task.Record, at time.Time)
	// Signer returns what signs a body that is sent at a time, nil if nothing does.
	Signer(keys []webhook.Key, at time.Time) Signer
	// CanSign reports whether the callbacks are signed with these keys as receivers
	// expect it; true if they expect nothing.
	CanSign(keys []webhook.Key) bool
}

// Traits are what a profile has another default for, and what it decides. The zero
// value is that of no profile.
type Traits struct {
	Name string
	// FromHeader, Format, TaskHeader and StatusHeader are the defaults of these
	// options; empty: the option's own.
	FromHeader, Format, TaskHeader, StatusHeader string
	// OwnFormat: the format cannot be changed.
	OwnFormat bool
	// KeepHeader: the callback has headers of the endpoint's response.
	KeepHeader bool
	// EmptyResult: a callback in format raw has no body if there was no response.
	EmptyResult bool
	// EmptyAccepted: the 202 of a queue has no body.
	EmptyAccepted bool
	// Headers are those that SetHeader and Signer set.
	Headers []string
}

// Signer signs a body that is written to it piece by piece.
type Signer interface {
	io.Writer
	// SetHeader sets the headers of the signature. Nothing may be written after it.
	SetHeader(h http.Header)
}

// Of returns the profile with a name; an empty or unknown name is no profile, which
// changes nothing.
func Of(name string) Profile {
	for _, p := range all {
		if p.Traits().Name == name {
			return p
		}
	}
	return none{}
}

// Names returns the names of all profiles, sorted.
func Names() (names []string) {
	for _, p := range all {
		names = append(names, p.Traits().Name)
	}
	slices.Sort(names)
	return names
}

// Sets reports whether a profile sets the header.
func Sets(name, header string) bool {
	return slices.ContainsFunc(Of(name).Traits().Headers, func(set string) bool { return strings.EqualFold(set, header) })
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

// none is no profile. The others embed it for what they leave as it is.
type none struct{}

func (none) Traits() Traits                                 { return Traits{} }
func (none) Function(string) string                         { return "" }
func (none) BlockURI(uri string) string                     { return uri }
func (none) SetHeader(http.Header, *task.Record, time.Time) {}
func (none) Signer([]webhook.Key, time.Time) Signer         { return nil }
func (none) CanSign([]webhook.Key) bool                     { return true }
