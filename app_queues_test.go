package callback

import (
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// passOn is a handler that may answer by itself.
type passOn struct{}

func (passOn) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return next.ServeHTTP(w, r)
}

// What a callback hands on without a claim must come to the queue, or nobody
// calls back.
func TestACallbackHandsOnWhatIsSureToBeQueued(t *testing.T) {
	t.Parallel()
	matched := caddyhttp.MatcherSets{{caddyhttp.MatchPath{"/some"}}}
	for name, c := range map[string]struct {
		routes       func(h *Handler) caddyhttp.RouteList
		leads, hands bool
	}{
		"the queue is next in the route": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{{MatcherSets: matched, Handlers: []caddyhttp.MiddlewareHandler{h, new(TaskQueue)}}}
		}, true, true},
		"the queue is the next route": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{
				{MatcherSets: matched, Handlers: []caddyhttp.MiddlewareHandler{h}},
				{Handlers: []caddyhttp.MiddlewareHandler{new(TaskQueue)}},
			}
		}, true, true},
		"some requests go to the queue": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{
				{Handlers: []caddyhttp.MiddlewareHandler{h}},
				{MatcherSets: matched, Handlers: []caddyhttp.MiddlewareHandler{new(TaskQueue)}},
			}
		}, true, false},
		"another handler stands between": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{{Handlers: []caddyhttp.MiddlewareHandler{h, passOn{}, new(TaskQueue)}}}
		}, true, false},
		"the route with the callback is the last": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{
				{Handlers: []caddyhttp.MiddlewareHandler{h}, Terminal: true},
				{Handlers: []caddyhttp.MiddlewareHandler{new(TaskQueue)}},
			}
		}, false, false},
		"one of a group is chosen": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{
				{Group: "g", Handlers: []caddyhttp.MiddlewareHandler{h}},
				{Group: "g", Handlers: []caddyhttp.MiddlewareHandler{new(TaskQueue)}},
			}
		}, false, false},
		"the queue comes after a group": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{
				{Group: "g", Handlers: []caddyhttp.MiddlewareHandler{h}},
				{Handlers: []caddyhttp.MiddlewareHandler{new(TaskQueue)}},
			}
		}, true, true},
		"the queue is in a block": {func(h *Handler) caddyhttp.RouteList {
			inner := caddyhttp.RouteList{{MatcherSets: matched, Handlers: []caddyhttp.MiddlewareHandler{new(TaskQueue)}}}
			return caddyhttp.RouteList{{Handlers: []caddyhttp.MiddlewareHandler{h, &caddyhttp.Subroute{Routes: inner}}}}
		}, true, false},
		"the callback is in a block": {func(h *Handler) caddyhttp.RouteList {
			inner := caddyhttp.RouteList{{MatcherSets: matched, Handlers: []caddyhttp.MiddlewareHandler{h}}}
			return caddyhttp.RouteList{{Handlers: []caddyhttp.MiddlewareHandler{&caddyhttp.Subroute{Routes: inner}, new(TaskQueue)}}}
		}, true, false},
		"the queue is in a named route": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{{Handlers: []caddyhttp.MiddlewareHandler{h, &caddyhttp.Invoke{Name: "with a queue"}}}}
		}, true, false},
		"there is no such named route": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{{Handlers: []caddyhttp.MiddlewareHandler{h, &caddyhttp.Invoke{Name: "none"}}}}
		}, false, false},
		"there is no queue": {func(h *Handler) caddyhttp.RouteList {
			return caddyhttp.RouteList{{Handlers: []caddyhttp.MiddlewareHandler{h, passOn{}}}}
		}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := new(Handler)
			named := map[string]*caddyhttp.Route{"with a queue": {Handlers: []caddyhttp.MiddlewareHandler{
				&caddyhttp.Invoke{Name: "with a queue"}, new(TaskQueue), // a circle, as Caddy permits it
			}}}
			if _, err := (&linker{named: named}).link(c.routes(h), nil); err != nil {
				t.Fatal(err)
			}
			if h.leads.Load() != c.leads || h.hands.Load() != c.hands {
				t.Errorf("leads %v, hands %v", h.leads.Load(), h.hands.Load())
			}
		})
	}
}
