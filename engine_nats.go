package callback

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/nats"
)

// NATSEngine keeps tasks in an existing JetStream cluster, so that several
// gateways can share them.
type NATSEngine struct {
	// The URLs of its servers: `nats://host:4222` or, encrypted,
	// `tls://host:4222`. A URL may hold a user and password, or a token.
	// Placeholders such as `{env.NATS_LOGIN}` expand. Required.
	URLs []string `json:"urls"`

	// A NATS credentials file. Placeholders expand. Default: none.
	Credentials string `json:"credentials,omitempty"`

	// On how many servers each stream is kept. Default: `3`.
	Replicas int `json:"replicas,omitempty"`
}

const defaultReplicas = 3

// CaddyModule returns the Caddy module information.
func (*NATSEngine) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: engineNamespace + ".nats", New: func() caddy.Module { return new(NATSEngine) }}
}

// Provision expands placeholders and applies the defaults: a password need not be
// in the configuration. It connects to nothing.
func (e *NATSEngine) Provision(caddy.Context) error {
	repl := caddy.NewReplacer()
	e.Credentials = repl.ReplaceKnown(e.Credentials, "")
	urls := make([]string, 0, len(e.URLs))
	for _, raw := range e.URLs {
		urls = append(urls, repl.ReplaceKnown(raw, ""))
	}
	e.URLs = urls
	setDefault(&e.Replicas, defaultReplicas)
	return nil
}

// Validate checks what needs no I/O.
func (e *NATSEngine) Validate() error {
	switch {
	case len(e.URLs) == 0:
		return errors.New("engine nats: no URL")
	case e.Replicas < 0:
		return fmt.Errorf("engine nats: replicas: %d is negative", e.Replicas)
	}
	return checkNATS(e.URLs)
}

// checkNATS checks the URLs of servers. Its error does not name the bad one: it may
// hold a password.
func checkNATS(urls []string) error {
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return errors.New("engine nats: expected URLs such as nats://host:4222")
		}
	}
	return nil
}

func (e *NATSEngine) storeKey() string {
	return strings.Join(slices.Sorted(slices.Values(e.URLs)), " ")
}

func (e *NATSEngine) spoolFolder() string {
	return filepath.Join(caddy.AppDataDir(), "callback", "spool")
}

func (e *NATSEngine) place() string {
	places := make([]string, 0, len(e.URLs))
	for _, raw := range e.URLs {
		if u, err := url.Parse(raw); err == nil {
			places = append(places, u.Scheme+"://"+u.Host)
		}
	}
	return strings.Join(places, ",")
}

func (e *NATSEngine) bodyFolder() string { return "" }

func (e *NATSEngine) open(ctx context.Context, settings engine.Settings, log *zap.Logger) (engine.Engine, error) {
	return nats.Open(ctx, nats.Config{
		URLs: e.URLs, Credentials: e.Credentials, Replicas: e.Replicas, Settings: settings, Logger: log,
	})
}

// UnmarshalCaddyfile reads
//
//	nats <url…> {
//	    credentials <file>
//	    replicas    <n>
//	}
func (e *NATSEngine) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the engine's name
	if e.URLs = d.RemainingArgs(); len(e.URLs) == 0 {
		return d.Err("engine nats: expected one URL or more")
	}
	// Those with placeholders are checked once these are known.
	known := slices.DeleteFunc(slices.Clone(e.URLs), hasPlaceholder)
	if err := checkNATS(known); err != nil {
		return d.WrapErr(err)
	}
	return parseBlock(d, d.Nesting(), "engine nats", options{
		"credentials": {parse: text(&e.Credentials)},
		"replicas":    {parse: count(&e.Replicas)},
	})
}

// Interface guards
var (
	_ engineModule      = (*NATSEngine)(nil)
	_ caddy.Provisioner = (*NATSEngine)(nil)
	_ caddy.Validator   = (*NATSEngine)(nil)
)
