// Package profile contains the contracts of other services, so that their clients and
// receivers can use the gateway unchanged. A contract defines how a request asks for a
// callback, and what the callback contains.
//
// Each profile is one file of this package and one element of all.
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

// all lists the profiles.
var all = []Profile{beam2{}, openFaaS{}}

// Profile is the contract of one service. Its methods can be called from several
// goroutines at once.
type Profile interface {
	// Traits returns the properties that do not depend on a task.
	Traits() Traits
	// Function returns the name of the function that a request for a path calls. The
	// name is stored with the task. It is empty if the service has no functions.
	Function(path string) string
	// BlockURI returns the path and query that a queue's block sees for a URI.
	BlockURI(uri string) string
	// SetHeader adds headers to those of a callback that is sent at the given time.
	// Headers that are already set are kept.
	SetHeader(h http.Header, rec *task.Record, at time.Time)
	// Signer returns the signer of a body that is sent at the given time, and nil if
	// the profile has no signature.
	Signer(keys []webhook.Key, at time.Time) Signer
	// CanSign reports whether these keys can sign callbacks as the service's receivers
	// expect. It is true if receivers expect no signature.
	CanSign(keys []webhook.Key) bool
}

// Traits are the defaults and the fixed properties of a profile. The zero value means
// no profile.
type Traits struct {
	Name string
	// FromHeader, Format, TaskHeader and StatusHeader are the defaults of these
	// options. If one is empty, the option keeps its own default.
	FromHeader, Format, TaskHeader, StatusHeader string
	// OwnFormat means that the format cannot be changed.
	OwnFormat bool
	// KeepHeader means that the callback contains headers of the endpoint's response.
	KeepHeader bool
	// EmptyResult means that a callback in format raw has no body if there was no
	// response.
	EmptyResult bool
	// EmptyAccepted means that a queue's 202 response has no body.
	EmptyAccepted bool
	// Headers lists the headers that SetHeader and Signer set.
	Headers []string
}

// Signer signs a body that is written to it in pieces.
type Signer interface {
	io.Writer
	// SetHeader sets the headers of the signature. Do not write to the Signer
	// afterwards.
	SetHeader(h http.Header)
}

// Of returns the profile with the given name. For an empty or unknown name it returns a
// profile that changes nothing.
func Of(name string) Profile {
	if name == "" {
		return none{}
	}
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

// Sets reports whether the named profile sets a header.
func Sets(name, header string) bool {
	return slices.ContainsFunc(Of(name).Traits().Headers, func(set string) bool { return strings.EqualFold(set, header) })
}

// Reserved reports whether only the gateway may set a header of a callback, whatever
// the profile.
func Reserved(header string) bool {
	header = strings.ToLower(header)
	switch header {
	case "content-type", "content-length", "content-encoding", "transfer-encoding", "host", "connection",
		"trailer", "te", "upgrade", "idempotency-key", "keep-alive", "proxy-connection":
		return true
	}
	return strings.HasPrefix(header, "webhook-") || strings.HasPrefix(header, "callback-")
}

// none is the profile that changes nothing. The other profiles embed it and override
// what they change.
type none struct{}

func (none) Traits() Traits                                 { return Traits{} }
func (none) Function(string) string                         { return "" }
func (none) BlockURI(uri string) string                     { return uri }
func (none) SetHeader(http.Header, *task.Record, time.Time) {}
func (none) Signer([]webhook.Key, time.Time) Signer         { return nil }
func (none) CanSign([]webhook.Key) bool                     { return true }
