package callback

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// NATSOptions name an existing JetStream cluster.
type NATSOptions struct {
	// The URLs of its servers: `nats://host:4222` or, encrypted,
	// `tls://host:4222`. Required.
	URLs []string `json:"urls"`

	// A NATS credentials file. Default: none.
	Credentials string `json:"credentials,omitempty"`

	// On how many servers each stream is kept. Default: `3`.
	Replicas int `json:"replicas,omitempty"`
}

// engines are shared by the two generations of a configuration that overlap
// during a reload; a store can be open only once.
var engines = caddy.NewUsagePool()

// pooledEngine is an engine and what delivers from it. The pool closes it.
type pooledEngine struct {
	*engine.Engine
	deliverer *deliverer
}

func (e pooledEngine) Destruct() error { e.Close(); return nil }

// key is what the pool knows the app's engine by: what can be open only once.
func (a *App) key() string {
	if a.NATS != nil {
		return strings.Join(slices.Sorted(slices.Values(a.NATS.URLs)), " ")
	}
	return a.Store
}

func (a *App) engineConfig() engine.Config {
	cfg := engine.Config{
		Store:          a.Store,
		Sync:           time.Duration(a.Sync),
		Retention:      time.Duration(a.Retention),
		RetentionCount: a.RetentionCount,
		Logger:         a.log,
	}
	if a.SyncAlways {
		cfg.Sync = 0
	}
	if a.NATS != nil {
		cfg.URLs, cfg.Credentials, cfg.Replicas = a.NATS.URLs, a.NATS.Credentials, a.NATS.Replicas
	}
	return cfg
}

// open opens the engine or joins it, and then what works with it.
func (a *App) open(ctx context.Context) error {
	cfg := a.engineConfig()
	pooled, loaded, err := engines.LoadOrNew(a.key(), func() (caddy.Destructor, error) {
		e, err := engine.Open(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return pooledEngine{e, newDeliverer(e)}, nil
	})
	if err != nil {
		return err
	}
	a.engineKey = a.key()
	e := pooled.(pooledEngine)
	if loaded {
		if err := e.Reconfigure(ctx, cfg); err != nil {
			return err
		}
	}
	a.deliverer = e.deliverer
	if err := a.openQueues(e.Engine); err != nil {
		return err
	}
	a.engine.Store(e.Engine)
	close(a.started) // from here on requests use them all
	a.startWorkers()
	return a.deliverer.join(a)
}

// reopenWait is how soon after a cluster can be reached it is.
const reopenWait = time.Second

// openLater tries to open the engine until it is open or ctx ends.
func (a *App) openLater(ctx context.Context) {
	tick := time.NewTicker(reopenWait)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := a.open(ctx)
		if err == nil {
			a.log.Info("engine reached")
			return
		}
		a.log.Warn("engine not reached", zap.Error(err))
		if a.engineKey != "" {
			return // it is open, but of no use: a reload or an operator must help
		}
	}
}

func (a *App) endOpening() {
	if a.stopOpening != nil {
		a.stopOpening()
		a.opening.Wait()
	}
}

// joinEngine uses the engine that somebody else has open.
func joinEngine(key string) (*engine.Engine, func(), error) {
	pooled, _, err := engines.LoadOrNew(key, func() (caddy.Destructor, error) { return nil, errStopped })
	if err != nil {
		return nil, nil, err
	}
	e := pooled.(pooledEngine).Engine
	leave := func() { _, _ = engines.Delete(key) } // Close returns no error
	return e, leave, nil
}
