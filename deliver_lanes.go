package callback

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// lanes are where deliveries wait whose host has all the attempts it may have:
// in the engine, a lane to a host, where they stand in nobody's way. A lane is
// served as the host's attempts end, and while it is open new deliveries to the
// host go straight into it.
type lanes struct {
	d *deliverer

	mu    sync.Mutex
	open  map[string]*lane // by the engine's token
	ahead int              // deliveries that may be taken beyond one of each lane
}

// lane is one that is served.
type lane struct {
	takes bool // new deliveries go into it
}

func newLanes(d *deliverer) *lanes { return &lanes{d: d, open: make(map[string]*lane)} }

// takes says whether new deliveries go into a host's lane.
func (ls *lanes) takes(name string) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.open[name]
	return l != nil && l.takes
}

// maxLanes bounds what clients who name a thousand slow hosts can cost: each
// lane is a consumer in the engine and a goroutine.
const maxLanes = 1000

// laneless is how long a delivery waits whose host can have no lane.
const laneless = 10 * time.Second

// hold moves a delivery into its host's lane.
func (ls *lanes) hold(dl *engine.Delivery, name string) error {
	ctx := context.Background()
	host := dl.Record.CallbackHost
	if !ls.enter(name, host) {
		return dl.Retry(ctx, time.Now().Add(laneless))
	}
	return dl.Hold(ctx)
}

// enter opens a host's lane if it is not open, and says whether it is.
func (ls *lanes) enter(name, hostPort string) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.open[name]; l != nil {
		l.takes = true
		return true
	}
	if len(ls.open) >= maxLanes {
		return false
	}
	ls.serve(name, func(ctx context.Context) (*engine.Source, error) { return ls.d.engine.Lane(ctx, hostPort) })
	return true
}

// adoptInterval is how soon a lane is served whose node has died.
const adoptInterval = 10 * time.Second

// adoptAll serves the lanes that others left behind, until deliveries are to be
// taken no more.
func (ls *lanes) adoptAll() {
	tick := time.NewTicker(adoptInterval)
	defer tick.Stop()
	for {
		select {
		case <-ls.d.claiming.Done():
			return
		case <-tick.C:
		}
		waiting, err := ls.d.engine.WaitingLanes(ls.d.claiming)
		if err != nil {
			if ls.d.claiming.Err() == nil {
				ls.d.logger().Warn("lanes not listed", zap.Error(err))
			}
			continue
		}
		for name, source := range waiting {
			ls.adopt(name, source)
		}
	}
}

// adopt serves a lane that somebody left behind.
func (ls *lanes) adopt(name string, source *engine.Source) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.open[name] != nil {
		return
	}
	ls.serve(name, func(context.Context) (*engine.Source, error) { return source, nil })
}

// serve starts the goroutine of a lane. Caller holds the lock.
func (ls *lanes) serve(name string, source func(context.Context) (*engine.Source, error)) {
	ls.open[name] = &lane{takes: true}
	ls.d.logger().Debug("lane opened", zap.String("lane", name))
	ls.d.loops.Go(func() {
		// The lane is in the way of nobody, so that nobody waits for its opening.
		for ls.d.claiming.Err() == nil {
			s, err := source(ls.d.claiming)
			if err == nil {
				ls.run(name, s)
				return
			}
			ls.d.logger().Warn("lane not opened", zap.String("lane", name), zap.Error(err))
			select {
			case <-ls.d.claiming.Done():
			case <-time.After(fetchPause):
			}
		}
		ls.drop(name)
	})
}

// run attempts a lane's deliveries as the host's turn comes, until the lane has
// been empty for a while. When deliveries are to be taken no more, it leaves the
// lane for the next to adopt.
func (ls *lanes) run(name string, source *engine.Source) {
	ctx := ls.d.claiming
	behind := 0
	for ctx.Err() == nil {
		ahead := ls.reserve(name, behind)
		var waiting sync.WaitGroup
		taken := ls.d.fetch(source, 1+ahead, func(dl *engine.Delivery) {
			behind = dl.Behind()
			waiting.Add(1)
			go func() {
				err := ls.d.hosts.await(ctx, name)
				waiting.Done()
				if err != nil {
					dl.Release()
					return
				}
				ls.d.carryOut(dl, name)
			}()
		})
		waiting.Wait()
		ls.giveBack(ahead)
		if !taken {
			behind = 0
		}
		switch {
		case taken, ctx.Err() != nil:
		case ls.shut(name):
			// Empty, but somebody may be about to put something in, who was told that
			// it takes: it is served for one fetch longer.
		case ls.close(ctx, name, source):
			ls.d.logger().Debug("lane closed", zap.String("lane", name))
			return
		}
	}
	ls.drop(name)
}

const (
	// laneBatch is how many deliveries are taken at once from a lane, and allAhead
	// from all lanes together beyond one each: what was taken and has no turn yet
	// waits in memory.
	laneBatch = 32
	allAhead  = 256
)

// reserve returns how many deliveries may be taken from a lane beyond the first,
// if so many stand behind it. They are given back when they have begun. From a
// host that does not answer they are taken one at a time.
func (ls *lanes) reserve(name string, behind int) int {
	if behind == 0 || ls.d.hosts.isMute(name) {
		return 0
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	n := min(behind-1, laneBatch-1, allAhead-ls.ahead)
	ls.ahead += n
	return n
}

func (ls *lanes) giveBack(n int) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.ahead -= n
}

// shut lets nothing more into a lane and says whether anything was let in.
func (ls *lanes) shut(name string) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.open[name]
	was := l.takes
	l.takes = false
	return was
}

// close removes a lane that is empty and says whether it did.
func (ls *lanes) close(ctx context.Context, name string, source *engine.Source) bool {
	closed, err := source.Close(ctx)
	if err != nil {
		ls.d.logger().Warn("lane not closed", zap.String("lane", name), zap.Error(err))
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if !closed || ls.open[name].takes {
		return false // in use again; the source opens itself anew
	}
	delete(ls.open, name)
	return true
}

// drop forgets a lane that is served no more.
func (ls *lanes) drop(name string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.open, name)
}
