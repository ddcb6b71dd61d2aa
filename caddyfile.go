package callback

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// options are the subdirectives of a block, by name. Each is given at most once
// unless it is repeatable.
type options map[string]option

type option struct {
	parse      func(d *caddyfile.Dispenser) error
	repeatable bool
}

// parseBlock reads the block that the dispenser stands before. It refuses what
// it does not know, and what stands there twice, by line and name.
func parseBlock(d *caddyfile.Dispenser, nesting int, directive string, opts options) error {
	seen := make(map[string]bool)
	for d.NextBlock(nesting) {
		name := d.Val()
		opt, ok := opts[name]
		if !ok {
			known := slices.Sorted(maps.Keys(opts))
			return d.Errf("%s has no option %q; it has %s", directive, name, strings.Join(known, ", "))
		}
		if seen[name] && !opt.repeatable {
			return d.Errf("%s: %s is given twice", directive, name)
		}
		seen[name] = true
		if err := opt.parse(d); err != nil {
			return err
		}
		if d.NextBlock(d.Nesting()) { // one that the option has not read
			return d.Errf("%s: %s takes no block", directive, name)
		}
	}
	return nil
}

// parseHandler reads
//
//	callback [<matcher>] [<url>] {
//	    profile        openfaas|beam2
//	    timeout        <duration>
//	    field          <name>
//	    from           header <name>|none
//	    format         form|json|raw
//	    task_header    <name>
//	    status_header  <name>
//	    header         <name> <value>
//	    max_request    <size>
//	    max_result     <size>
//	}
//
// The URL is the callback of every request that names none itself. Options that
// are left out have the defaults of [Handler].
func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive; its grammar stands above
// parseHandler.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		h.URL = d.Val()
		// Whether it is denied is for the delivery's options to say.
		if _, err := new(safedial.Policy).Trusted().CheckURL(h.URL); err != nil && !hasPlaceholder(h.URL) {
			return d.Errf("callback: bad URL: %v", err)
		}
	}
	if d.NextArg() {
		return d.Errf("callback takes one URL at most, and %q is one more", d.Val())
	}
	return parseBlock(d, 0, "callback", options{
		"profile":       {parse: h.alone(oneOf(&h.Profile, profileNames...))},
		"timeout":       {parse: duration(&h.Timeout)},
		"field":         {parse: h.alone(text(&h.Field))},
		"from":          {parse: h.alone(h.parseFrom)},
		"format":        {parse: h.alone(oneOf(&h.Format, formatForm, formatJSON, formatRaw))},
		"task_header":   {parse: headerName(&h.TaskHeader)},
		"status_header": {parse: headerName(&h.StatusHeader)},
		"header":        {parse: h.parseHeader, repeatable: true},
		"max_request":   {parse: size(&h.MaxRequest)},
		"max_result":    {parse: size(&h.MaxResult)},
	})
}

// alone adds to an option's parser that what is there already must go with it.
func (h *Handler) alone(parse func(*caddyfile.Dispenser) error) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if err := parse(d); err != nil {
			return err
		}
		if err := h.conflict(); err != nil {
			return d.Errf("callback: %v", err)
		}
		return nil
	}
}

func (h *Handler) parseFrom(d *caddyfile.Dispenser) error {
	switch args := d.RemainingArgs(); {
	case len(args) == 1 && args[0] == "none":
		h.FromNone = true
	case len(args) != 2 || args[0] != "header":
		return d.Err("from takes the word header and the name of the header that has the URL, or the word none")
	case !isToken(args[1]):
		return d.Errf("from header: %q is not a header name", args[1])
	default:
		h.FromHeader = args[1]
	}
	return nil
}

func (h *Handler) parseHeader(d *caddyfile.Dispenser) error {
	var field HeaderField
	if !d.AllArgs(&field.Name, &field.Value) {
		return d.Err("header takes a name and a value")
	}
	if !isToken(field.Name) {
		return d.Errf("header: %q is not a header name", field.Name)
	}
	h.Headers = append(h.Headers, field)
	return nil
}

// parseApp reads the global options
//
//	callback {
//	    store      <folder>
//	    sync       always|<duration>
//	    nats       <url…> {
//	        credentials <file>
//	        replicas    <n>
//	    }
//	    retention  <duration> [<count>]
//	    queue      <name> { … }
//	    delivery {
//	        timeout     <duration>
//	        retry       <duration…>
//	        secret      <key…>
//	        allow       <cidr|host…>
//	        deny        <cidr|host…>
//	        ports       <port…>|any
//	        trusted_ca  <file…>
//	        concurrency <n>
//	        per_host    <n>
//	    }
//	}
//
// Options that are left out have the defaults of [App] and [Delivery].
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next() // for the line's number
		return nil, d.Err("the global option callback is given twice")
	}
	app := new(App)
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "callback", Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile reads the global options; their grammar stands above
// parseApp.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return d.Errf("the global option callback takes a block and no value, and here is %q", d.Val())
	}
	return parseBlock(d, 0, "callback", options{
		"store":     {parse: text(&a.Store)},
		"sync":      {parse: a.parseSync},
		"retention": {parse: a.parseRetention},
		"nats":      {parse: a.parseNATS},
		"queue":     {parse: a.parseQueue, repeatable: true},
		"delivery":  {parse: a.parseDelivery},
	})
}

func (a *App) parseNATS(d *caddyfile.Dispenser) error {
	o := new(NATSOptions)
	a.NATS = o
	if err := words(&o.URLs, checkNATSWords)(d); err != nil {
		return err
	}
	return parseBlock(d, d.Nesting(), "nats", options{
		"credentials": {parse: text(&o.Credentials)},
		"replicas":    {parse: count(&o.Replicas)},
	})
}

// checkNATSWords leaves those with placeholders for when they are known.
func checkNATSWords(urls []string) error {
	return checkNATS(slices.DeleteFunc(slices.Clone(urls), func(raw string) bool { return strings.Contains(raw, "{") }))
}

func (a *App) parseSync(d *caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if value == "always" {
			a.SyncAlways = true
			return nil
		}
		if setDuration(d, name, &a.Sync) != nil {
			return d.Errf("%s: %q is neither \"always\" nor a positive duration such as 10ms", name, value)
		}
		return nil
	})(d)
}

func (a *App) parseRetention(d *caddyfile.Dispenser) error {
	if args := d.CountRemainingArgs(); args < 1 || args > 2 {
		return d.Errf("retention takes a duration and perhaps a count, not %d values", args)
	}
	d.NextArg()
	if err := setDuration(d, "retention", &a.Retention); err != nil {
		return err
	}
	if !d.NextArg() {
		return nil
	}
	n, err := strconv.ParseInt(d.Val(), 10, 64)
	if err != nil || n < 1 {
		return d.Errf("retention: %q is not a positive whole number", d.Val())
	}
	a.RetentionCount = n
	return nil
}

func (a *App) parseDelivery(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.Errf("delivery takes a block and no value, and here is %q", d.Val())
	}
	a.Delivery = new(Delivery)
	o := a.Delivery
	return parseBlock(d, d.Nesting(), "delivery", options{
		"timeout":     {parse: duration(&o.Timeout)},
		"retry":       {parse: o.parseRetry},
		"secret":      {parse: secrets(&o.Secret, webhook.ParseKey)},
		"allow":       {parse: words(&o.Allow, func(v []string) error { return checkPolicy(safedial.Config{Allow: v}) })},
		"deny":        {parse: words(&o.Deny, func(v []string) error { return checkPolicy(safedial.Config{Deny: v}) })},
		"ports":       {parse: words(&o.Ports, func(v []string) error { return checkPolicy(safedial.Config{Ports: v}) })},
		"trusted_ca":  {parse: words(&o.TrustedCA, func([]string) error { return nil })},
		"concurrency": {parse: count(&o.Concurrency)},
		"per_host":    {parse: count(&o.PerHost)},
	})
}

func (o *Delivery) parseRetry(d *caddyfile.Dispenser) error {
	for d.NextArg() {
		var wait caddy.Duration
		if err := setDuration(d, "retry", &wait); err != nil {
			return err
		}
		o.Retry = append(o.Retry, wait)
	}
	if len(o.Retry) == 0 {
		return d.Err("retry takes the waits between attempts, one or more")
	}
	return nil
}

// parseInbox reads
//
//	callback_inbox [<matcher>] {
//	    keep    <n>
//	    secret  <key…>
//	    respond <status>
//	}
//
// Options that are left out have the defaults of [Inbox].
func parseInbox(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	inbox := new(Inbox)
	return inbox, inbox.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive; its grammar stands above parseInbox.
func (i *Inbox) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		return d.Errf("callback_inbox takes a block and no value, and here is %q", d.Val())
	}
	return parseBlock(d, 0, "callback_inbox", options{
		"keep":    {parse: count(&i.Keep)},
		"secret":  {parse: secrets(&i.Secret, webhook.ParseVerifyKey)},
		"respond": {parse: status(&i.Respond)},
	})
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Inbox)(nil)
)
