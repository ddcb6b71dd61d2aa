package alert

import (
	"context"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

const (
	// nearlyFull is the used part of a store, in percent, at which there is an alert.
	nearlyFull = 90
	// checkInterval is how often the fill level of the store is checked.
	checkInterval = 10 * time.Second
	// statsTimeout bounds how long an unresponsive store delays the alerts held back.
	statsTimeout = 2 * time.Second
)

// Watch checks a store for alerts that no delivery attempt raises. The zero value watches
// nothing.
type Watch struct {
	stop context.CancelFunc
	done sync.WaitGroup
}

// Checks are what a [Watch] calls, one at a time.
type Checks struct {
	// NearlyFull gets the fill level of a store that is nearly full, in bytes.
	NearlyFull func(level map[string]any)
	// Due is called when alerts that were held back may be due.
	Due func(now time.Time)
}

// Start checks a store at once and every ten seconds. The store must stay open until Stop.
func (w *Watch) Start(e engine.Engine, c Checks) {
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	w.done.Go(func() {
		ticker := time.NewTicker(checkInterval)
		defer ticker.Stop()
		for {
			if level := fillLevel(ctx, e); level != nil {
				c.NearlyFull(level)
			}
			c.Due(time.Now())
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
}

// Stop returns when no check runs. It may be called twice, and before Start.
func (w *Watch) Stop() {
	if w.stop != nil {
		w.stop()
		w.done.Wait()
	}
}

// fillLevel describes a store that is nearly full. It returns nil for any other store, and
// if its size is not known.
func fillLevel(ctx context.Context, e engine.Engine) map[string]any {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	stats, err := e.Stats(ctx)
	if err != nil || stats.Limit == 0 || stats.Used < stats.Limit/100*nearlyFull {
		return nil
	}
	return map[string]any{"used": stats.Used, "limit": stats.Limit}
}
