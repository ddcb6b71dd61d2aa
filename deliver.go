package callback

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// deliverer attempts deliveries as their turn comes. It lives as long as the
// engine it takes them from: a reload changes how attempts are made from then
// on, not what is under way, nor what counts against the limits.
type deliverer struct {
	engine *engine.Engine
	hosts  *hosts
	lanes  *lanes
	bodies *largeBodies

	// life is held while a generation of the configuration comes or goes.
	life     sync.Mutex
	claiming context.Context // ends when no more deliveries are to be taken
	stop     context.CancelFunc
	loops    sync.WaitGroup // what takes deliveries

	mu      sync.Mutex
	senders []*sender // of the generations that deliver, the newest last
	setBy   *App      // whose schedules and retention the engine has
	log     *zap.Logger
}

func newDeliverer(e *engine.Engine) *deliverer {
	d := &deliverer{engine: e, hosts: newHosts(), bodies: newLargeBodies(), log: zap.NewNop(), stop: func() {}}
	d.lanes = newLanes(d)
	return d
}

// join makes attempts go by this generation's options, and begins to deliver
// if it is the only one.
func (d *deliverer) join(app *App) error {
	d.life.Lock()
	defer d.life.Unlock()
	d.mu.Lock()
	first := len(d.senders) == 0
	d.senders = append(d.senders, newSender(d, app))
	d.log = app.log
	d.mu.Unlock()
	app.metrics.counts.engine.Store(d.engine)
	d.hosts.setLimits(app.Delivery.Concurrency, app.Delivery.PerHost)
	if !first {
		return nil
	}
	return d.start(app.ctx)
}

// leave undoes join. The last to leave waits until nothing is taken any more;
// attempts in flight go on. It may be called twice, and without join.
func (d *deliverer) leave(app *App) {
	d.life.Lock()
	defer d.life.Unlock()
	app.metrics.counts.engine.Store(nil) // it may be closed
	d.mu.Lock()
	d.senders = slices.DeleteFunc(d.senders, func(s *sender) bool {
		if s.app == app {
			s.close()
		}
		return s.app == app
	})
	var heir *App
	if n := len(d.senders); n > 0 {
		heir = d.senders[n-1].app
		d.log = heir.log
	}
	d.mu.Unlock()
	if heir != nil {
		d.hosts.setLimits(heir.Delivery.Concurrency, heir.Delivery.PerHost)
		return
	}
	d.stop()
	d.loops.Wait()
}

// setFor notes whose schedules and retention the engine is about to have.
func (d *deliverer) setFor(app *App) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setBy = app
}

// heirOf returns whose they ought to be again if those are of a generation that has
// left: one before it that goes on, for the configuration did not start as a whole.
func (d *deliverer) heirOf(app *App) *App {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.setBy != app || len(d.senders) == 0 {
		return nil
	}
	d.setBy = d.senders[len(d.senders)-1].app
	return d.setBy
}

// start begins to take deliveries. Caller holds d.life.
func (d *deliverer) start(ctx context.Context) error {
	due, err := d.engine.Due(ctx)
	if err != nil {
		return err
	}
	waiting, err := d.engine.OpenLanes(ctx)
	if err != nil {
		return err
	}
	d.claiming, d.stop = context.WithCancel(context.Background())
	for token, source := range waiting {
		d.lanes.adopt(token, source)
	}
	d.loops.Go(d.lanes.adoptAll)
	d.loops.Go(func() { d.takeDue(due) })
	return nil
}

// laneOpen says whether deliveries to a host and port go into its lane.
func (d *deliverer) laneOpen(hostPort string) bool {
	return d.lanes.takes(engine.HostToken(hostPort))
}

// enter returns how attempts are made now and keeps that generation from being
// cleaned up until its app.working is left; nil if all have left.
func (d *deliverer) enter() *sender {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range slices.Backward(d.senders) {
		if s.app.working.enter() {
			return s
		}
	}
	return nil
}

// logger returns the log of the newest generation: that of an older one may be
// closed.
func (d *deliverer) logger() *zap.Logger {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log
}

const (
	// dueBatch is how many deliveries are taken at once in the order in which
	// they fell due.
	dueBatch = 32
	// maxInHand bounds how many of them wait in memory for their turn.
	maxInHand = 4 * dueBatch
	// turnWait is how long they do. The turn of a host that answers comes sooner;
	// a lane for each small burst would cost more than the wait.
	turnWait = 100 * time.Millisecond
)

// takeDue takes deliveries in the order in which they fell due.
func (d *deliverer) takeDue(due *engine.Source) {
	inHand := make(chan struct{}, maxInHand)
	var placing sync.WaitGroup
	defer placing.Wait()
	for d.claiming.Err() == nil {
		// A place in memory for each before it is taken: what has been fetched and
		// is not looked at would be given to somebody else after a while.
		for range dueBatch {
			inHand <- struct{}{}
		}
		waiting := 0
		d.fetch(due, dueBatch, func(dl *engine.Delivery) {
			name := engine.HostToken(dl.Record.CallbackHost)
			if d.hosts.start(name) == begins {
				d.begin(dl, name)
				return
			}
			waiting++
			placing.Add(1)
			go func() {
				began := d.place(dl, name)
				<-inHand
				placing.Done()
				if began {
					d.carryOut(dl, name)
				}
			}()
		})
		for range dueBatch - waiting {
			<-inHand
		}
	}
}

// place waits for the turn of a delivery's host and says whether it came. If that
// takes long, the delivery is moved out of the others' way.
func (d *deliverer) place(dl *engine.Delivery, name string) (began bool) {
	t := full
	if !d.lanes.takes(name) {
		t = d.awaitTurn(name)
	}
	switch {
	case t == begins:
		return true
	case d.claiming.Err() != nil:
		dl.Release()
		return false
	}
	if err := d.lanes.hold(dl, name); err != nil {
		d.logger().Warn("delivery not put into its lane", zap.String("task_id", dl.Record.ID), zap.Error(err))
	}
	return false
}

// awaitTurn waits a moment for a host's turn. It waits on while all attempts are
// taken: a lane would make nothing faster.
func (d *deliverer) awaitTurn(name string) turn {
	t := busy
	for t == busy && d.claiming.Err() == nil {
		if d.hosts.awaitFor(d.claiming, name, turnWait) == nil {
			return begins
		}
		t = d.hosts.start(name)
	}
	return t
}

// fetchPause keeps an engine that is away from being asked in a tight loop.
const fetchPause = time.Second

// fetch takes up to n deliveries from a source, hands each to place, and says
// whether there were any, or might have been. It takes none while the engine
// cannot store: what follows from an attempt would be forgotten, and the attempt
// made again and again.
func (d *deliverer) fetch(source *engine.Source, n int, place func(*engine.Delivery)) (found bool) {
	err := d.engine.Stores()
	if err == nil {
		for dl, failed := range source.Fetch(d.claiming, n) {
			if failed != nil {
				err = failed
				d.logger().Warn("deliveries not fetched", zap.Error(err))
				break
			}
			found = true
			place(dl)
		}
	}
	if err == nil {
		return found
	}
	select {
	case <-d.claiming.Done():
	case <-time.After(fetchPause):
	}
	return true
}

// begin starts an attempt that is counted in.
func (d *deliverer) begin(dl *engine.Delivery, name string) { go d.carryOut(dl, name) }

// carryOut makes an attempt that is counted in.
func (d *deliverer) carryOut(dl *engine.Delivery, name string) {
	s := d.enter()
	if s == nil {
		d.hosts.leave(name)
		dl.Release()
		return
	}
	defer s.app.working.leave()
	defer d.hosts.leave(name)
	if answered, told := s.attempt(dl, name); told {
		d.hosts.heard(name, answered)
	}
}

// attempt makes one attempt and stores what follows from it. It returns whether
// the host answered, and whether anything can be told about that.
func (s *sender) attempt(dl *engine.Delivery, name string) (answered, told bool) {
	rec := dl.Record
	if rec.FinishedAt.IsZero() { // the lease lapsed
		if counts, err := dl.TakeLapsed(context.Background()); !counts {
			s.stored(rec, err)
			return false, false
		}
		rec.FinishedAt = time.Now().UTC()
		s.app.metrics.taskEnded(rec)
	}
	if rec.Callback == nil {
		s.stored(rec, dl.Done(context.Background()))
		return true, true // nobody is called, so that nobody is slow
	}
	ans := s.post(dl, name)
	if ans.err != nil && s.app.quit.Err() != nil {
		ans.endSpan("")
		dl.Release() // the process exits; the attempt does not count
		return false, false
	}
	rec.AddAttempt(task.Attempt{
		At: ans.at, StatusCode: ans.status, DurationMS: ans.took.Milliseconds(),
		Error: ans.message(), Response: ans.excerpt,
	})
	s.conclude(dl, ans)
	return ans.status != 0, true
}

// conclude stores what follows from an attempt's answer.
func (s *sender) conclude(dl *engine.Delivery, ans answer) {
	rec := dl.Record
	rec.NextAttemptAt = time.Time{}
	ctx := context.Background()
	var outcome string
	var wait time.Duration
	var err error
	switch {
	case ans.accepted():
		outcome, rec.DeliveredAt = outcomeDelivered, ans.at.Add(ans.took)
		err = dl.Done(ctx)
	case ans.final() || rec.Tries > len(s.opts.Retry):
		outcome = outcomeDead
		err = dl.Dead(ctx)
	default:
		outcome = outcomeRetry
		wait = s.retryIn(rec.Tries, ans)
		rec.NextAttemptAt = time.Now().UTC().Add(wait)
		err = dl.Retry(ctx, rec.NextAttemptAt)
	}
	ans.endSpan(outcome)
	s.app.metrics.attempted(rec, outcome, ans.at, ans.took)
	if c := s.app.log.Check(zap.InfoLevel, "delivery attempted"); c != nil {
		c.Write(zap.String("task_id", rec.ID), zap.Int("attempt", rec.Tries), zap.String("state", outcome),
			zap.String("callback_host", rec.CallbackHost), zap.Int("status_code", ans.status),
			zap.Duration("duration", ans.took), zap.Duration("retry_in", wait), zap.String("error", ans.message()))
	}
	s.stored(rec, err)
	if err == nil && outcome != outcomeRetry {
		events.announce(rec, outcome, s.app.log)
	}
}

// stored logs a step that could not be stored. The delivery comes again.
func (s *sender) stored(rec *task.Record, err error) {
	if err != nil {
		s.app.log.Error("delivery not recorded", zap.String("task_id", rec.ID), zap.Error(err))
	}
}

const (
	// maxJitter bounds what is added to a long wait.
	maxJitter = 15 * time.Minute
	// maxRetryAfter bounds what a receiver can ask for: a year would be for ever.
	maxRetryAfter = 24 * time.Hour
)

// retryIn returns the wait after the given number of attempts. What the
// receiver asks for counts if it is longer.
func (s *sender) retryIn(tries int, ans answer) time.Duration {
	wait := time.Duration(s.opts.Retry[tries-1])
	wait += rand.N(min(wait/5, maxJitter) + 1)
	return max(wait, min(ans.retryAfter, maxRetryAfter))
}
