package callback

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	bodies "github.com/caddy-callback/caddy-callback/internal/capture"
	"github.com/caddy-callback/caddy-callback/internal/profile"
)

// conflict says which two of the options cannot stand together. It looks at
// them as they were written, before the defaults: in a Caddyfile after each
// one, so that the error has the line of the second.
func (h *Handler) conflict() error {
	p := profile.Of(h.Profile).Traits()
	switch {
	case h.FromNone && (h.Field != "" || h.FromHeader != ""):
		return errors.New("from none lets no request name a URL; leave out field and from header")
	case h.Field != "" && h.FromHeader != "":
		return fmt.Errorf("field %s and from header %s are two places for one URL; give one of them", h.Field, h.FromHeader)
	case h.Field != "" && p.FromHeader != "":
		return fmt.Errorf("field %s: the profile %s has the URL in the header %s; only from header can change that", h.Field, h.Profile, p.FromHeader)
	case h.Format != "" && p.OwnFormat:
		return fmt.Errorf("format %s: the profile %s has a format of its own", h.Format, h.Profile)
	}
	return nil
}

// applyProfile sets what the profile has another default for.
func (h *Handler) applyProfile() error {
	if h.Profile != "" && !slices.Contains(profile.Names(), h.Profile) {
		return fmt.Errorf("profile: %q is none of %s", h.Profile, strings.Join(profile.Names(), ", "))
	}
	if err := h.conflict(); err != nil {
		return err
	}
	p := profile.Of(h.Profile).Traits()
	if !h.FromNone {
		setDefault(&h.FromHeader, p.FromHeader)
	}
	setDefault(&h.Format, p.Format)
	setDefault(&h.TaskHeader, p.TaskHeader)
	setDefault(&h.StatusHeader, p.StatusHeader)
	h.fromKey = http.CanonicalHeaderKey(h.FromHeader)
	return nil
}

// validateProfile checks the header that names the URL against those that the
// gateway sets, and these against those of the profile.
func (h *Handler) validateProfile() error {
	switch {
	case h.FromNone && h.URL == "":
		return errors.New("from none lets no request name a URL, and there is no other; write callback <url>")
	case h.FromHeader == "":
	case !isToken(h.FromHeader):
		return fmt.Errorf("from header: %q is not a header name", h.FromHeader)
	case profile.Reserved(h.FromHeader), strings.EqualFold(h.FromHeader, h.TaskHeader):
		return fmt.Errorf("from header: %s is set by the gateway", h.FromHeader)
	}
	for _, name := range []string{h.TaskHeader, h.StatusHeader} {
		if profile.Sets(h.Profile, name) {
			return fmt.Errorf("%s is set by the profile %s; the task's ID and status need headers of their own", name, h.Profile)
		}
	}
	return nil
}

// urlOf returns the URL that the request names, "" if it names none, and why one
// that may have wanted a callback names none. The error is a *problem: the request
// must be refused. w is the response to the request, nil if there is none.
func (h *Handler) urlOf(w http.ResponseWriter, r *http.Request) (string, bodies.Reason, error) {
	switch {
	case h.FromNone:
		return "", "", nil
	case h.fromKey != "":
		named, err := headerURL(r.Header[h.fromKey], h.FromHeader)
		return named, "", err
	}
	return h.findURL(w, r)
}

// source is what clients know the place of the URL by.
func (h *Handler) source() string {
	if h.FromHeader != "" {
		return h.FromHeader
	}
	return h.Field
}

// headerURL returns the URL in a header. It allocates nothing unless the request
// is refused: every request passes here, and none is read.
func headerURL(values []string, name string) (string, error) {
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	default:
		return "", &problem{http.StatusBadRequest, name + ": the header is there twice, and servers disagree on which one counts"}
	}
}
