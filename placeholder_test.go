package callback

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// placeholderBlocks are the blocks of the grammar. OPTION is replaced by the line of an
// option.
var placeholderBlocks = map[string]string{
	"app":       "{\n callback {\n OPTION\n }\n}\n",
	"sqlite":    "{\n callback {\n engine sqlite {\n OPTION\n }\n }\n}\n",
	"nats":      "{\n callback {\n engine nats nats://127.0.0.1:1 {\n OPTION\n }\n }\n}\n",
	"delivery":  "{\n callback {\n delivery {\n OPTION\n }\n }\n}\n",
	"queue":     "{\n callback {\n queue q {\n OPTION\n }\n }\n}\n",
	"schedule":  "{\n callback {\n queue q {\n schedule @daily {\n OPTION\n }\n }\n }\n}\n",
	"directive": "http://localhost:0 {\n OPTION\n}\n",
	"callback":  "http://localhost:0 {\n callback {\n OPTION\n }\n}\n",
	"inbox":     "http://localhost:0 {\n callback_inbox {\n OPTION\n }\n}\n",
}

// TestPlaceholdersInOptions sets each option of each block to a placeholder.
func TestPlaceholdersInOptions(t *testing.T) {
	const key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	type loaded struct {
		app *App
		ctx caddy.Context
	}
	var tested []string
	schedule := func(l loaded) *Schedule { return l.app.Queues["q"].Schedules[0] }
	for _, c := range []struct {
		block, line string
		value       string              // of the environment variable
		got         func(loaded) string // returns the expanded value; nil if the option is refused
	}{
		{"app", "engine sqlite {env.V}", "/v", func(l loaded) string { return l.app.engine.(*SQLiteEngine).Folder }},
		{"app", "engine nats {env.V}", "nats://v:4222", func(l loaded) string { return l.app.engine.(*NATSEngine).URLs[0] }},
		{"app", "engine {env.V}", "sqlite", nil},
		{"app", "retention {env.V}", "1h", nil},
		{"app", "retention 1h {env.V}", "5", nil},
		{"app", "dead {env.V}", "1h", nil},
		{"app", "keep_results {env.V}", "on", nil},
		{"app", "alert {env.V}", "http://10.0.0.5/v", func(l loaded) string { return l.app.Alert }},
		{"app", "queue {env.V}", "q", nil},
		{"app", "delivery {env.V}", "", nil},
		{"sqlite", "sync {env.V}", "10ms", nil},
		{"sqlite", "max_size {env.V}", "1GiB", nil},
		{"nats", "credentials {env.V}", "/v", func(l loaded) string { return l.app.engine.(*NATSEngine).Credentials }},
		{"nats", "replicas {env.V}", "1", nil},
		{"delivery", "timeout {env.V}", "1s", nil},
		{"delivery", "retry 1s {env.V}", "1s", nil},
		{"delivery", "secret {env.V}", key, func(l loaded) string { return l.app.Delivery.Secret[0] }},
		{"delivery", "derive_keys {env.V}\n secret " + key, "v", func(l loaded) string {
			return *l.app.Delivery.keyFor(caddy.NewReplacer()) // with each request
		}},
		{"delivery", "allow 10.0.0.1 {env.V}", "10.0.0.0/8", func(l loaded) string { return l.app.Delivery.Allow[1] }},
		{"delivery", "deny {env.V}", "v.example", func(l loaded) string { return l.app.Delivery.Deny[0] }},
		{"delivery", "ports {env.V}", "8080", func(l loaded) string { return l.app.Delivery.Ports[0] }},
		{"delivery", "trusted_ca {env.V}", "testdata/ca.pem", func(l loaded) string { return l.app.Delivery.TrustedCA[0] }},
		{"delivery", "concurrency {env.V}", "1", nil},
		{"delivery", "slow {env.V}", "1", nil},
		{"delivery", "per_host {env.V}", "1", nil},
		{"delivery", "rate {env.V}", "1/1s", nil},
		{"delivery", "pause_after {env.V}", "1h", nil},
		{"queue", "workers {env.V}", "1", nil},
		{"queue", "attempts {env.V}", "1", nil},
		{"queue", "attempts 1 {env.V}", "503", nil},
		{"queue", "max_queued {env.V}", "1", nil},
		{"queue", "max_delay {env.V}", "1h", nil},
		{"queue", "rate {env.V}", "1/1s", nil},
		{"queue", "idempotency_scope {env.V}", "v", func(l loaded) string {
			return caddy.NewReplacer().ReplaceAll(l.app.Queues["q"].IdempotencyScope, "") // expands for each request
		}},
		{"queue", "schedule {env.V}", "@hourly", func(l loaded) string { return schedule(l).Cron }},
		{"queue", "schedule @daily {env.V}", "Europe/Paris", func(l loaded) string { return schedule(l).Zone }},
		{"schedule", "method {env.V}", "PUT", func(l loaded) string { return schedule(l).Method }},
		{"schedule", "uri {env.V}", "/v", func(l loaded) string { return schedule(l).URI }},
		{"schedule", "header X-V {env.V}", "v", func(l loaded) string { return schedule(l).Headers[0].Value }},
		{"schedule", "header {env.V} v", "X-V", func(l loaded) string { return schedule(l).Headers[0].Name }},
		{"schedule", "body `{\"v\":\"{env.V}\"}`", "v", func(l loaded) string {
			return strings.NewReplacer(`{"v":"`, "", `"}`, "").Replace(schedule(l).Body)
		}},
		{"directive", "callback {env.V}", "https://v.example/", func(l loaded) string { return firstHandler(t, l.ctx).(*Handler).URL }},
		{"directive", "task_queue {env.V} {\n respond ok\n }", "q", nil},
		{"callback", "profile {env.V}", "beam2", nil},
		{"callback", "timeout {env.V}", "1s", nil},
		{"callback", "field {env.V}", "v", nil},
		{"callback", "from header {env.V}", "X-V", nil},
		{"callback", "format {env.V}", "json", nil},
		{"callback", "task_header {env.V}", "X-V", nil},
		{"callback", "status_header {env.V}", "X-V", nil},
		{"callback", "header {env.V} v", "X-V", nil},
		{"callback", "header X-V {env.V}", "v", func(l loaded) string {
			return caddy.NewReplacer().ReplaceAll(firstHandler(t, l.ctx).(*Handler).Headers[0].Value, "") // expands for each request
		}},
		{"callback", "max_request {env.V}", "1MiB", nil},
		{"callback", "max_result {env.V}", "1MiB", nil},
		{"callback", "max_kept {env.V}", "1GiB", nil},
		{"callback", "large_results {env.V}", "link", nil},
		{"callback", "large_results link {env.V}", "https://v.example/tasks", func(l loaded) string {
			return firstHandler(t, l.ctx).(*Handler).ResultsURL
		}},
		{"inbox", "keep {env.V}", "1", nil},
		{"inbox", "secret {env.V}", key, func(l loaded) string { return firstHandler(t, l.ctx).(*Inbox).Secret[0] }},
		{"inbox", "forward_to {env.V}", "http://localhost:3000", func(l loaded) string { return firstHandler(t, l.ctx).(*Inbox).ForwardTo[0] }},
		{"inbox", "respond {env.V}", "500", nil},
	} {
		t.Run(c.block+" "+c.line, func(t *testing.T) {
			t.Setenv("V", c.value)
			ctx, err := load(t, strings.Replace(placeholderBlocks[c.block], "OPTION", c.line, 1))
			option, _, _ := strings.Cut(c.line, " ")
			switch {
			case c.got == nil:
				if err == nil || !strings.Contains(err.Error(), option) || !strings.Contains(err.Error(), "{env.V}") {
					t.Errorf("the error does not name the option and the placeholder: %v", err)
				}
			case err != nil:
				t.Error(err)
			default:
				app, err := ctx.App("callback")
				if err != nil {
					t.Fatal(err)
				}
				if got := c.got(loaded{app.(*App), ctx}); got != c.value {
					t.Errorf("expanded to %q", got)
				}
			}
		})
		tested = append(tested, c.block+" "+strings.Fields(c.line)[0])
	}
	for block, text := range placeholderBlocks {
		if block == "directive" {
			continue
		}
		for _, option := range optionsOf(t, text) {
			if !slices.Contains(tested, block+" "+option) {
				t.Errorf("the option %s of %s is not in the table", option, block)
			}
		}
	}
}

// optionsOf returns the options of a block, from the error for an unknown one.
func optionsOf(t *testing.T, block string) []string {
	t.Helper()
	_, err := load(t, strings.Replace(block, "OPTION", "unknown", 1))
	if err == nil {
		t.Fatalf("an unknown option is accepted in %s", block)
	}
	names := regexp.MustCompile(`expected one of ([a-z_, ]+), at`).FindStringSubmatch(err.Error())
	if names == nil {
		t.Fatalf("the error names no options: %v", err)
	}
	return strings.Split(names[1], ", ")
}

// load provisions a Caddyfile without starting it.
func load(t *testing.T, caddyfile string) (caddy.Context, error) {
	t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return caddy.Context{}, err
	}
	cfg := new(caddy.Config)
	if err := json.Unmarshal(config, cfg); err != nil {
		t.Fatal(err)
	}
	return caddy.ProvisionContext(cfg)
}

// firstHandler returns the first handler of the only route.
func firstHandler(t *testing.T, ctx caddy.Context) caddyhttp.MiddlewareHandler {
	t.Helper()
	app, err := ctx.App("http")
	if err != nil {
		t.Fatal(err)
	}
	for _, server := range app.(*caddyhttp.App).Servers {
		routes := server.Routes
		for len(routes) > 0 && len(routes[0].Handlers) > 0 {
			block, ok := routes[0].Handlers[0].(*caddyhttp.Subroute)
			if !ok {
				return routes[0].Handlers[0]
			}
			routes = block.Routes
		}
	}
	t.Fatal("there is no handler")
	return nil
}
