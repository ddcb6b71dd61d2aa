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

// open opens the engine or joins it, and then what works with it. It may be
// called again after an error that means that the engine may answer later.
func (a *App) open(ctx context.Context) error {
	if a.engineKey == "" {
		if err := a.hold(ctx); err != nil {
			return err
		}
	}
	e := a.pooled
	if err := a.openQueues(e.Engine); err != nil {
		return err
	}
	a.deliverer = e.deliverer
	if err := a.deliverer.join(a); err != nil {
		a.deliverer.leave(a)
		return err
	}
	a.engine.Store(e.Engine)
	close(a.started) // from here on requests use them all
	a.startWorkers()
	generations.add(a)
	return nil
}

// hold takes the engine out of the pool.
func (a *App) hold(ctx context.Context) error {
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
	a.engineKey, a.pooled = a.key(), pooled.(pooledEngine)
	a.pooled.deliverer.setFor(a)
	if loaded {
		return a.pooled.Reconfigure(ctx, cfg)
	}
	return nil
}

// takeBack sets in the engine what a configuration that did not start after all has
// set otherwise. A tick of one of its schedules may have come meanwhile.
func (a *App) takeBack() {
	err := a.pooled.Reconfigure(a.ctx, a.engineConfig())
	if err == nil {
		err = a.setSchedules(a.pooled.Engine)
	}
	if err != nil {
		a.log.Error("schedules and retention are those of a configuration that did not start", zap.Error(err))
	}
}

const (
	// reopenWait is how soon after an engine can be used it is.
	reopenWait = time.Second
	// awayInterval is how often it is logged that it cannot.
	awayInterval = time.Minute
)

// openLater tries to open the engine until it is open or ctx ends.
func (a *App) openLater(ctx context.Context) {
	tick := time.NewTicker(reopenWait)
	defer tick.Stop()
	logged, cause := time.Now(), ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := a.open(ctx)
		switch {
		case err == nil:
			a.log.Info("engine reached")
			return
		case ctx.Err() != nil:
			return
		case !a.comesLater(err):
			// It is of no use: a reload or an operator must help.
			a.log.Error("engine not opened", zap.Error(err))
			return
		case time.Since(logged) >= awayInterval, err.Error() != cause:
			logged, cause = time.Now(), err.Error()
			a.log.Warn("engine not reached", zap.Error(err))
		}
	}
}

// comesLater says whether an engine that could not be opened may be of use
// later, by itself. Another generation's, which is unwell, gets well.
func (a *App) comesLater(err error) bool {
	return engine.IsAway(err) || a.engineKey != "" && a.pooled.Ready() != nil
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
