package callback

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
)

// engineNamespace is where the modules are that keep tasks.
const engineNamespace = "callback.engines"

// engineModule is a module of that namespace: the options of an engine.
type engineModule interface {
	caddy.Module
	caddyfile.Unmarshaler
	// storeKey identifies what can be open only once: the same key is the same store.
	storeKey() string
	// place says where the tasks are, as `caddy callback migrate` takes it. It holds
	// no credentials.
	place() string
	// spoolFolder is the folder for the bodies of requests that are being read.
	spoolFolder() string
	// bodyFolder is where large callbacks are kept between their attempts; empty for
	// the system's folder for temporary files.
	bodyFolder() string
	// open opens the store. It returns when ctx ends at the latest.
	open(ctx context.Context, settings engine.Settings, log *zap.Logger) (engine.Engine, error)
}

// SQLiteEngine keeps tasks in a folder of this machine, in an SQLite database and,
// if they are large, in files beside it. Only one process can use the folder.
type SQLiteEngine struct {
	// The folder. Placeholders expand. Default: `callback` in Caddy's data directory.
	Folder string `json:"folder,omitempty"`

	// How often what was written is synced to disk. With `0` nothing is
	// acknowledged before it is synced, so that a power failure loses nothing. A
	// duration is faster, and a power failure loses what was accepted since the last
	// sync. A killed process loses nothing either way. Default: zero.
	Sync caddy.Duration `json:"sync,omitempty"`

	// How large the store may become, in bytes, bodies included. A full one
	// refuses new callbacks with 503. Default: `10737418240` (10 GiB).
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
func (e *SQLiteEngine) Provision(caddy.Context) error {
	folder := caddy.NewReplacer().ReplaceKnown(e.Folder, "")
	if folder == "" {
		folder = filepath.Join(caddy.AppDataDir(), "callback")
	}
	folder, err := filepath.Abs(folder)
	if err != nil {
		return fmt.Errorf("engine sqlite: folder: %w", err)
	}
	e.Folder = folder
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
		e.Folder = d.Val()
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

// Interface guards
var (
	_ engineModule      = (*SQLiteEngine)(nil)
	_ caddy.Provisioner = (*SQLiteEngine)(nil)
	_ caddy.Validator   = (*SQLiteEngine)(nil)
)
