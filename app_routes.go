package callback

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/tracing"
)

// warnOfOrder warns of two faults that no handler can detect alone. It inspects the
// provisioned routes, so it does not depend on the format of the configuration.
//
// A callback handler may run before authentication. A request that is refused there is
// a task already, so a stranger could make the gateway post to a URL of their choice.
// And a route may match the requests of a queue but not the URLs of their tasks. Caddy
// then answers polls with an empty 200.
func (a *App) warnOfOrder() {
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return
	}
	for name, server := range app.(*caddyhttp.App).Servers {
		o := &orderCheck{named: server.NamedRoutes}
		o.walk(server.Routes, nil)
		for _, front := range o.early {
			front.log.Warn("callback runs before authentication; a request that is refused there still gets its callback",
				zap.String("server", name), zap.String("fix", "put callback behind the authentication, or write from none"))
		}
		for _, queue := range o.unpolled {
			a.log.Warn("clients cannot poll the queue; its matcher does not match the URLs of its tasks",
				zap.String("server", name), zap.String("queue", queue.Name),
				zap.String("fix", "match the path and what is below it, such as /train and /train/*, for GET and DELETE too"))
		}
	}
}

// orderCheck finds callback handlers that requests pass before they are authenticated,
// and queues that clients cannot poll.
type orderCheck struct {
	named   map[string]*caddyhttp.Route
	invoked []string
	// unmatched is how many of the surrounding routes match no URL of a task.
	unmatched int

	early    []*Handler   // callback handlers found so far
	unpolled []*TaskQueue // queues found so far
}

// walk visits the routes in the order of a request. It takes the callback handlers that
// a request may have passed before, and returns those that it may have passed
// afterwards.
func (o *orderCheck) walk(routes caddyhttp.RouteList, before []*Handler) []*Handler {
	groups := make(map[string][]*Handler)
	for _, route := range routes {
		// A request takes only one route of a group.
		passed := slices.DeleteFunc(slices.Clone(before), func(h *Handler) bool {
			return route.Group != "" && slices.Contains(groups[route.Group], h)
		})
		n := len(passed)
		unmatched := 0
		if matchesNoPoll(route.MatcherSets) {
			unmatched = 1
		}
		o.unmatched += unmatched
		for _, handler := range route.Handlers {
			passed = o.handler(handler, passed)
		}
		o.unmatched -= unmatched
		if route.Terminal {
			continue
		}
		added := passed[n:]
		before = append(slices.Clip(before), added...)
		groups[route.Group] = append(groups[route.Group], added...)
	}
	return before
}

func (o *orderCheck) handler(handler caddyhttp.MiddlewareHandler, before []*Handler) []*Handler {
	switch handler := handler.(type) {
	case *Handler:
		if !handler.FromNone {
			before = append(slices.Clip(before), handler)
		}
	case *caddyhttp.Subroute:
		return o.walk(handler.Routes, before)
	case *caddyhttp.Invoke:
		route := o.named[handler.Name]
		if route == nil || slices.Contains(o.invoked, handler.Name) {
			break
		}
		o.invoked = append(o.invoked, handler.Name)
		defer func() { o.invoked = o.invoked[:len(o.invoked)-1] }()
		return o.walk(caddyhttp.RouteList{*route}, before)
	case *TaskQueue:
		if o.unmatched > 0 && !slices.Contains(o.unpolled, handler) {
			o.unpolled = append(o.unpolled, handler)
		}
		fronts := before
		if !handler.NoCallback && !handler.callback.FromNone {
			fronts = append(slices.Clip(before), handler.callback)
		}
		o.walk(handler.Routes, fronts)
	default:
		if !authenticates(handler) {
			break
		}
		for _, front := range before {
			if !slices.Contains(o.early, front) {
				o.early = append(o.early, front)
			}
		}
	}
	return before
}

// matchesNoPoll says whether each of the sets has a matcher that refuses GET of
// every URL below its own: the paths of a queue's tasks. It answers false of
// matchers that it does not know.
func matchesNoPoll(sets caddyhttp.MatcherSets) bool {
	wildcard := func(path string) bool { return strings.Contains(path, "*") }
	for _, set := range sets {
		if !slices.ContainsFunc(set, func(matcher any) bool {
			switch matcher := matcher.(type) {
			case *caddyhttp.MatchPath:
				return !slices.ContainsFunc(*matcher, wildcard)
			case *caddyhttp.MatchMethod:
				return !slices.Contains(*matcher, http.MethodGet)
			}
			return false
		}) {
			return false
		}
	}
	return len(sets) > 0
}

// authenticates reports whether a handler refuses unauthenticated requests.
// forward_auth is a reverse_proxy that sends GET and handles the response.
func authenticates(handler caddyhttp.MiddlewareHandler) bool {
	switch handler := handler.(type) {
	case *reverseproxy.Handler:
		return handler.Rewrite != nil && handler.Rewrite.Method == http.MethodGet && len(handler.HandleResponse) > 0
	case caddy.Module:
		return handler.CaddyModule().ID == "http.handlers.authentication"
	}
	return false
}

// tracingSetup is the tracing of a generation. Caddy's `tracing` directive decides which
// requests have a span and where spans are exported. Spans are exported only if a route
// has it.
type tracingSetup struct {
	open   bool
	tracer *tracing.Tracer // nil if nothing is traced
	queues map[string]bool // queues behind a tracing handler
}

// traceProviders has the provider of the process. Generations share it, so that no span
// is lost in a reload.
var traceProviders = caddy.NewUsagePool()

const traceProviderKey = "spans"

// openTracing looks for tracing handlers. All apps must be provisioned before.
func (a *App) openTracing() error {
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return nil // there are no routes
	}
	t := &a.tracing
	t.queues = make(map[string]bool)
	traced := false
	for _, server := range app.(*caddyhttp.App).Servers {
		traced = t.walk(server.Routes, false) || traced
		for _, route := range server.NamedRoutes {
			traced = t.walk(caddyhttp.RouteList{*route}, false) || traced
		}
	}
	if !traced {
		return nil
	}
	provider, _, err := traceProviders.LoadOrNew(traceProviderKey, func() (caddy.Destructor, error) { return tracing.NewProvider() })
	if err != nil {
		return fmt.Errorf("opening the exporter of traces: %w", err)
	}
	t.open, t.tracer = true, provider.(*tracing.Provider).Tracer(Version)
	return nil
}

// close exports the remaining spans, unless another generation uses the exporter.
func (t *tracingSetup) close() error {
	if !t.open {
		return nil
	}
	t.open = false
	_, err := traceProviders.Delete(traceProviderKey)
	return err
}

// walk visits the routes in the order of a request, and records which queues are behind a
// tracing handler. before means that the request has passed one already. walk reports
// whether the routes contain one.
func (t *tracingSetup) walk(routes caddyhttp.RouteList, before bool) (found bool) {
	for _, route := range routes {
		for _, handler := range route.Handlers {
			switch inner := handler.(type) {
			case *TaskQueue:
				t.queues[inner.Name] = t.queues[inner.Name] || before
				found = t.walk(inner.Routes, before) || found
			case *caddyhttp.Subroute:
				found = t.walk(inner.Routes, before) || found
			case caddy.Module:
				if inner.CaddyModule().ID == "http.handlers.tracing" {
					before, found = true, true
				}
			}
		}
	}
	return found
}
