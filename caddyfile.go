package callback

import (
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"golang.org/x/net/http/httpguts"

	"github.com/caddy-callback/caddy-callback/internal/encode"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// options are the subdirectives of a block, by name. Only a repeatable one may occur
// twice.
type options map[string]option

type option struct {
	parse      func(d *caddyfile.Dispenser) error
	repeatable bool
	expands    bool // placeholders in its values are allowed
	gone       bool // replaced by another option, and not listed
}

// parseBlock parses the block at the dispenser's position. Errors for unknown and
// duplicate options have their line and name.
func parseBlock(d *caddyfile.Dispenser, nesting int, directive string, opts options) error {
	seen := make(map[string]bool)
	for d.NextBlock(nesting) {
		name := d.Val()
		opt, ok := opts[name]
		if !ok {
			return d.Errf("%s: unknown option %q; expected one of %s", directive, name, strings.Join(opts.names(), ", "))
		}
		if seen[name] && !opt.repeatable {
			return d.Errf("%s: %s is given twice", directive, name)
		}
		seen[name] = true
		if !opt.expands {
			if err := refusePlaceholder(d, directive); err != nil {
				return err
			}
		}
		if err := opt.parse(d); err != nil {
			return err
		}
		if d.NextBlock(d.Nesting()) { // the option's parser has left it
			return d.Errf("%s: %s takes no block", directive, name)
		}
	}
	return nil
}

// refusePlaceholder returns an error if the values of the current option contain a
// placeholder. Numbers, durations and keywords must be known when the Caddyfile is
// parsed.
func refusePlaceholder(d *caddyfile.Dispenser, directive string) error {
	ahead := *d
	for ahead.NextArg() {
		if found := placeholder.FindString(ahead.Val()); found != "" {
			return d.Errf("%s: %s: the placeholder %s does not expand here; {$NAME} does, for an environment variable", directive, d.Val(), found)
		}
	}
	return nil
}

// names returns the names of the options, sorted.
func (opts options) names() (names []string) {
	for name, opt := range opts {
		if !opt.gone {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// parseHandler parses
//
//	callback [<matcher>] [<url>] {
//	    profile        openfaas|beam2
//	    timeout        <duration>
//	    field          <name>
//	    from           header <name>|none
//	    format         form|json|raw|cloudevents
//	    task_header    <name>
//	    status_header  <name>
//	    header         <name> <value>
//	    max_request    <size>
//	    max_result     <size>
//	    large_results  link [<url>]
//	    max_kept       <size>
//	}
//
// The URL is the callback of every request that does not name one. Omitted options have
// the defaults of [Handler].
func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return handler, blockOf(h).addCallback(h, handler)
}

// UnmarshalCaddyfile parses the directive. See parseHandler for its grammar.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	directive := *d
	if d.NextArg() {
		h.URL = d.Val()
		if h.URL == "off" {
			return d.Err("callback off is only for the block of a task_queue; elsewhere, leave out the directive")
		}
		if err := checkOwnURL(h.URL); err != nil {
			return d.Errf("callback: bad URL: %v", err)
		}
	}
	if d.NextArg() {
		return d.Errf("callback takes at most one URL; unexpected %q", d.Val())
	}
	err := parseBlock(d, 0, "callback", options{
		"profile":       {parse: h.alone(oneOf(&h.Profile, profile.Names()...))},
		"timeout":       {parse: duration(&h.Timeout)},
		"field":         {parse: h.alone(text(&h.Field))},
		"from":          {parse: h.alone(h.parseFrom)},
		"format":        {parse: h.alone(oneOf(&h.Format, encode.Formats()...))},
		"task_header":   {parse: taskHeader(&h.TaskHeader)},
		"status_header": {parse: taskHeader(&h.StatusHeader)},
		"header":        {parse: h.parseHeader, repeatable: true, expands: true},
		"max_request":   {parse: size(&h.MaxRequest)},
		"max_result":    {parse: size(&h.MaxResult)},
		"large_results": {parse: h.parseLargeResults, expands: true},
		"max_kept":      {parse: keptSize(&h.MaxKept)},
	})
	if err != nil {
		return err
	}
	if h.MaxKept != 0 && h.LargeResults == "" {
		return directive.Err("callback: max_kept needs large_results link")
	}
	withDefaults := *h
	if err = withDefaults.applyProfile(); err == nil {
		err = withDefaults.checkNames()
	}
	if err != nil {
		return directive.Errf("callback: %v", err)
	}
	return nil
}

// alone wraps the parser of an option to check that it can be combined with those
// before it.
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
		return d.Err("from takes header and the name of a header, or none")
	case !httpguts.ValidHeaderFieldName(args[1]):
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
	if err := field.check(); err != nil {
		return d.Errf("header: %v", err)
	}
	if profile.Reserved(field.Name) {
		return d.Errf("header: %s is set by the gateway", field.Name)
	}
	h.Headers = append(h.Headers, field)
	return nil
}

// parseApp parses the global options
//
//	callback {
//	    engine sqlite [<folder>] {
//	        sync     always|<duration>
//	        max_size <size>
//	    }
//	    engine nats <url…> {
//	        credentials <file>
//	        replicas    <n>
//	    }
//	    retention    <duration> [<count>]
//	    dead         <duration> [<count>]
//	    keep_results on|off
//	    alert        <url>
//	    queue        <name> { … }
//	    delivery {
//	        timeout     <duration>
//	        retry       <duration…>
//	        secret      <key…>
//	        derive_keys <text>
//	        allow       <cidr|host…>
//	        deny        <cidr|host…>
//	        ports       <port…>|any
//	        trusted_ca  <file…>
//	        concurrency <n>
//	        slow        <n>
//	        per_host    <n>
//	        rate        <n>/<duration>
//	        pause_after <duration>
//	    }
//	}
//
// At most one engine is allowed. Omitted options have the defaults of [App],
// [SQLiteEngine], [NATSEngine] and [Delivery].
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	if existing != nil {
		d.Next() // for the line number
		return nil, d.Err("the global option callback is given twice")
	}
	app := new(App)
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "callback", Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile parses the global options. See parseApp for their grammar.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return d.Errf("the global option callback takes a block and no value; unexpected %q", d.Val())
	}
	return parseBlock(d, 0, "callback", options{
		"engine":       {parse: a.parseEngine, expands: true},
		"retention":    {parse: durationAndCount(&a.Retention, &a.RetentionCount)},
		"dead":         {parse: durationAndCount(&a.Dead, &a.DeadCount)},
		"keep_results": {parse: onOff(&a.KeepResults)},
		"alert":        {parse: ownURL(&a.Alert), expands: true},
		"queue":        {parse: a.parseQueue, repeatable: true},
		"delivery":     {parse: a.parseDelivery},
		"store":        {parse: replacedBy("engine sqlite <folder>"), gone: true},
		"sync":         {parse: replacedBy("engine sqlite { sync <duration> }"), gone: true},
		"nats":         {parse: replacedBy("engine nats <url…>"), gone: true},
	})
}

// parseEngine parses an engine, which is a module.
func (a *App) parseEngine(d *caddyfile.Dispenser) error {
	known := make([]string, 0, 2)
	for _, module := range caddy.GetModules(engineNamespace) {
		known = append(known, module.ID.Name())
	}
	slices.Sort(known)
	if !d.NextArg() {
		return d.Errf("engine: expected one of %s", strings.Join(known, ", "))
	}
	name := d.Val()
	if !slices.Contains(known, name) {
		return d.Errf("engine: unknown engine %q; expected one of %s", name, strings.Join(known, ", "))
	}
	module, err := caddyfile.UnmarshalModule(d, engineNamespace+"."+name)
	if err != nil {
		return err
	}
	a.EngineRaw = caddyconfig.JSONModuleObject(module, "engine", name, nil)
	return nil
}

// replacedBy is the parser of an option that was replaced.
func replacedBy(option string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		return d.Errf("the option %s is replaced by %s", d.Val(), option)
	}
}

func (a *App) parseDelivery(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.Errf("delivery takes a block and no value; unexpected %q", d.Val())
	}
	a.Delivery = new(Delivery)
	o, option := a.Delivery, *d
	err := parseBlock(d, d.Nesting(), "delivery", options{
		"timeout":     {parse: duration(&o.Timeout)},
		"retry":       {parse: o.parseRetry},
		"secret":      {parse: secrets(&o.Secret, webhook.ParseKey), expands: true},
		"derive_keys": {parse: placeholders(&o.DeriveKeys), expands: true},
		"allow":       {parse: words(&o.Allow, func(v []string) error { return checkPolicy(safedial.Config{Allow: known(v)}) }), expands: true},
		"deny":        {parse: words(&o.Deny, func(v []string) error { return checkPolicy(safedial.Config{Deny: known(v)}) }), expands: true},
		"ports":       {parse: words(&o.Ports, func(v []string) error { return checkPolicy(safedial.Config{Ports: known(v)}) }), expands: true},
		"trusted_ca":  {parse: words(&o.TrustedCA, func([]string) error { return nil }), expands: true},
		"concurrency": {parse: count(&o.Concurrency)},
		"slow":        {parse: count(&o.Slow)},
		"per_host":    {parse: count(&o.PerHost)},
		"rate":        {parse: rate(&o.Rate)},
		"pause_after": {parse: duration(&o.PauseAfter)},
	})
	if err == nil && o.DeriveKeys != "" && len(o.Secret) == 0 {
		return option.WrapErr(errNoSecret)
	}
	return err
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
		return d.Err("retry takes one or more durations, the waits between attempts")
	}
	return nil
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
)
