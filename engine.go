package callback

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/nats"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
)

// engineNamespace is the Caddy namespace of the engine modules.
const engineNamespace = "callback.engines"

// engineModule is a module of that namespace: the options of an engine.
type engineModule interface {
	caddy.Module
	caddyfile.Unmarshaler
	// storeKey identifies the store. Equal keys share one open store.
	storeKey() string
	// place names the store as `caddy callback migrate` takes it, without credentials.
	place() string
	// spoolFolder is the folder for bodies of requests while they are read.
	spoolFolder() string
	// bodyFolder is the folder for large callbacks between their attempts. Empty means
	// the system's folder for temporary files.
	bodyFolder() string
	// open opens the store. It returns when ctx ends.
	open(ctx context.Context, settings engine.Settings, log *zap.Logger) (engine.Engine, error)
}

// SQLiteEngine keeps tasks in a local folder: in an SQLite database, and large bodies
// in files beside it. Only one process can use the folder.
type SQLiteEngine struct {
	// The folder. Placeholders expand. Default: `callback` in Caddy's data directory.
	Folder string `json:"folder,omitempty"`

	// How often writes are synced to disk. With `0` a task is synced before it is
	// acknowledged, so a power failure loses nothing. With a duration, the gateway is
	// faster, and a power failure loses the tasks accepted since the last sync. A killed
	// process never loses tasks. Default: zero.
	Sync caddy.Duration `json:"sync,omitempty"`

	// The maximum size of the store, in bytes, bodies included. A full store refuses new
	// callbacks with 503. Default: `10737418240` (10 GiB).
	MaxSize int64 `json:"max_size,omitempty"`
}

const (
	defaultStoreSize = 10 << 30
	minStoreSize     = 64 << 20
)

// CaddyModule returns the Caddy module information.
func (*SQLiteEngine) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: engineNamespace + ".sqlite", New: func() caddy.Module { return new(SQLiteEngine) }}
}

// Provision applies the defaults. It opens nothing.
func (e *SQLiteEngine) Provision(caddy.Context) (err error) {
	expand(&e.Folder)
	if e.Folder == "" {
		e.Folder = filepath.Join(caddy.AppDataDir(), "callback")
	}
	if e.Folder, err = filepath.Abs(e.Folder); err != nil {
		return fmt.Errorf("engine sqlite: folder: %w", err)
	}
	setDefault(&e.MaxSize, defaultStoreSize)
	return nil
}

// Validate checks what needs no I/O.
func (e *SQLiteEngine) Validate() error {
	switch {
	case e.Sync < 0:
		return fmt.Errorf("engine sqlite: sync: %v is negative", time.Duration(e.Sync))
	case e.MaxSize < minStoreSize:
		return fmt.Errorf("engine sqlite: max_size: %d is less than %d bytes", e.MaxSize, minStoreSize)
	}
	return nil
}

func (e *SQLiteEngine) storeKey() string { return e.place() }
func (e *SQLiteEngine) place() string    { return "sqlite:" + e.Folder }

func (e *SQLiteEngine) spoolFolder() string { return filepath.Join(e.Folder, "spool") }
func (e *SQLiteEngine) bodyFolder() string  { return filepath.Join(e.Folder, "encoded") }

func (e *SQLiteEngine) open(ctx context.Context, settings engine.Settings, log *zap.Logger) (engine.Engine, error) {
	return sqlite.Open(ctx, sqlite.Config{
		Folder: e.Folder, Sync: time.Duration(e.Sync), MaxSize: e.MaxSize, Settings: settings, Logger: log,
	})
}

// UnmarshalCaddyfile reads
//
//	sqlite [<folder>] {
//	    sync     always|<duration>
//	    max_size <size>
//	}
func (e *SQLiteEngine) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the engine's name
	if d.NextArg() {
		if e.Folder = d.Val(); e.Folder == "" {
			return d.Err("engine sqlite: the folder is empty")
		}
	}
	if d.NextArg() {
		return d.Errf("engine sqlite: unexpected argument %q; expected one folder", d.Val())
	}
	return parseBlock(d, d.Nesting(), "engine sqlite", options{
		"sync":     {parse: e.parseSync},
		"max_size": {parse: storeSize(&e.MaxSize)},
	})
}

func (e *SQLiteEngine) parseSync(d *caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if value == "always" {
			e.Sync = 0
			return nil
		}
		if setDuration(d, name, &e.Sync) != nil {
			return d.Errf("%s: %q is neither \"always\" nor a positive duration such as 10ms", name, value)
		}
		return nil
	})(d)
}

// NATSEngine keeps tasks in an existing JetStream cluster, which several gateways can
// share.
type NATSEngine struct {
	// The URLs of the servers: `nats://host:4222` or, encrypted, `tls://host:4222`. A
	// URL may contain a user and password, or a token. Placeholders such as
	// `{env.NATS_LOGIN}` expand. Required.
	URLs []string `json:"urls"`

	// A NATS credentials file. Placeholders expand. Default: none.
	Credentials string `json:"credentials,omitempty"`

	// The number of servers that each stream is kept on. Default: `3`.
	Replicas int `json:"replicas,omitempty"`
}

const defaultReplicas = 3

// CaddyModule returns the Caddy module information.
func (*NATSEngine) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: engineNamespace + ".nats", New: func() caddy.Module { return new(NATSEngine) }}
}

// Provision expands placeholders, so that passwords can stay out of the configuration,
// and applies the defaults. It does not connect.
func (e *NATSEngine) Provision(caddy.Context) error {
	expand(&e.Credentials)
	expandAll(&e.URLs)
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

// checkNATS checks the URLs of servers. Its error does not contain the URL, which may
// have a password.
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
		return d.Err("engine nats: expected one or more URLs")
	}
	// URLs with placeholders are checked after expansion.
	known := slices.DeleteFunc(slices.Clone(e.URLs), hasPlaceholder)
	if err := checkNATS(known); err != nil {
		return d.WrapErr(err)
	}
	return parseBlock(d, d.Nesting(), "engine nats", options{
		"credentials": {parse: text(&e.Credentials), expands: true},
		"replicas":    {parse: count(&e.Replicas)},
	})
}

// Interface guards
var (
	_ engineModule      = (*SQLiteEngine)(nil)
	_ caddy.Provisioner = (*SQLiteEngine)(nil)
	_ caddy.Validator   = (*SQLiteEngine)(nil)
	_ engineModule      = (*NATSEngine)(nil)
	_ caddy.Provisioner = (*NATSEngine)(nil)
	_ caddy.Validator   = (*NATSEngine)(nil)
)
