package callback

import (
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// warnOfLateAuthentication tells the operator of every callback handler whose
// requests are authenticated only after it: a request that is refused there is a
// task already, and a stranger has the gateway post to a URL of his choice. It
// looks at the handlers, so it finds the order that runs, whatever it is written in.
func (a *App) warnOfLateAuthentication() {
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
	}
}

// orderCheck looks for callback handlers that a request passes before it is
// authenticated.
type orderCheck struct {
	named   map[string]*caddyhttp.Route
	invoked []string
	early   []*Handler // what it has found
}

// walk goes through routes as a request would, and returns the callback handlers
// that it may have passed afterwards. before are those that it may have passed
// already.
func (o *orderCheck) walk(routes caddyhttp.RouteList, before []*Handler) []*Handler {
	groups := make(map[string][]*Handler)
	for _, route := range routes {
		// Of a group's routes a request takes one.
		passed := slices.DeleteFunc(slices.Clone(before), func(h *Handler) bool {
			return route.Group != "" && slices.Contains(groups[route.Group], h)
		})
		n := len(passed)
		for _, handler := range route.Handlers {
			passed = o.handler(handler, passed)
		}
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

// authenticates says whether a handler turns away requests of strangers. forward_auth
// is a reverse_proxy that asks with GET and looks at the answer.
func authenticates(handler caddyhttp.MiddlewareHandler) bool {
	switch handler := handler.(type) {
	case *reverseproxy.Handler:
		return handler.Rewrite != nil && handler.Rewrite.Method == http.MethodGet && len(handler.HandleResponse) > 0
	case caddy.Module:
		return handler.CaddyModule().ID == "http.handlers.authentication"
	}
	return false
}
