package callback

import (
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-callback/caddy-callback/internal/web"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Inbox records every request that is sent to it, to try callbacks out. Browsers get a
// page with the decoded callbacks, and clients with `Accept: application/json` a list.
type Inbox struct {
	// How many callbacks are kept, in memory. The oldest are removed first. Default:
	// `500`.
	Keep int `json:"keep,omitempty"`

	// The keys to verify signatures with: `whsec_…`, `whsk_…` or the public `whpk_…`.
	// Placeholders such as `{env.KEY}` expand. Default: none; signatures are not
	// verified.
	Secret []string `json:"secret,omitempty"`

	// The status of the inbox's responses, to try out failures. Default: `200`.
	Respond int `json:"respond,omitempty"`

	// The origins, such as `http://localhost:3000`, that the page can forward a callback
	// to, at any path. Default: none.
	ForwardTo []string `json:"forward_to,omitempty"`

	inbox *web.Inbox
}

// CaddyModule returns the Caddy module information.
func (*Inbox) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.callback_inbox", New: func() caddy.Module { return new(Inbox) }}
}

// Provision creates the empty inbox.
func (i *Inbox) Provision(ctx caddy.Context) error {
	var keys []webhook.Key
	expandAll(&i.Secret)
	expandAll(&i.ForwardTo)
	for _, secret := range i.Secret {
		key, err := webhook.ParseVerifyKey(secret)
		if err != nil {
			return fmt.Errorf("secret: %w", err)
		}
		keys = append(keys, key)
	}
	origins, err := parseOrigins(i.ForwardTo)
	if err != nil {
		return err
	}
	i.inbox = web.NewInbox(web.InboxConfig{Keep: i.Keep, Keys: keys, Respond: i.Respond, ForwardTo: origins})
	if server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		// The server waits for open event streams before it cleans up its modules, so the
		// streams must end first.
		server.RegisterOnShutdown(i.inbox.Close)
	}
	return nil
}

func parseOrigins(list []string) (origins []string, err error) {
	for _, s := range list {
		origin, err := web.ParseForwardOrigin(s)
		if err != nil {
			return nil, fmt.Errorf("forward_to: %w", err)
		}
		origins = append(origins, origin)
	}
	return origins, nil
}

// checkOrigins checks the values of forward_to.
func checkOrigins(list []string) error {
	_, err := parseOrigins(list)
	return err
}

// Validate checks what needs no I/O.
func (i *Inbox) Validate() error {
	if i.Keep < 0 {
		return fmt.Errorf("keep: %d is negative", i.Keep)
	}
	if i.Respond != 0 && (i.Respond < 200 || i.Respond > 599) {
		return fmt.Errorf("respond: %d is not a status from 200 to 599", i.Respond)
	}
	return nil
}

// Cleanup ends the open event streams.
func (i *Inbox) Cleanup() error {
	if i.inbox != nil {
		i.inbox.Close()
	}
	return nil
}

func (i *Inbox) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	i.inbox.ServeHTTP(w, r)
	return nil
}

// parseInbox parses
//
//	callback_inbox [<matcher>] {
//	    keep    <n>
//	    secret  <key…>
//	    respond <status>
//	    forward_to <origin…>
//	}
//
// Omitted options have the defaults of [Inbox].
func parseInbox(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	inbox := new(Inbox)
	return inbox, inbox.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile parses the directive. See parseInbox for its grammar.
func (i *Inbox) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		return d.Errf("callback_inbox takes a block and no value; unexpected %q", d.Val())
	}
	return parseBlock(d, 0, "callback_inbox", options{
		"keep":       {parse: count(&i.Keep)},
		"secret":     {parse: secrets(&i.Secret, webhook.ParseVerifyKey), expands: true},
		"respond":    {parse: status(&i.Respond)},
		"forward_to": {parse: words(&i.ForwardTo, func(v []string) error { return checkOrigins(known(v)) }), expands: true},
	})
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Inbox)(nil)
	_ caddy.Validator             = (*Inbox)(nil)
	_ caddy.CleanerUpper          = (*Inbox)(nil)
	_ caddyfile.Unmarshaler       = (*Inbox)(nil)
	_ caddyhttp.MiddlewareHandler = (*Inbox)(nil)
)
