package callback

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// deliverer attempts the deliveries of a store. It lives as long as the store: a
// reload changes how attempts are made from then on, not those in flight, nor what
// counts against the limits.
type deliverer struct {
	store *sharedStore

	mu      sync.Mutex
	sender  *sender // of the generation that delivers; nil if none does
	due     []string
	known   map[string]bool // the hosts in due
	running map[string]int  // attempts in flight, by host
	all     int             // attempts in flight
	changed chan struct{}   // closed when one of these changes

	stop  context.CancelFunc
	loops sync.WaitGroup
}

func newDeliverer(s *sharedStore) *deliverer {
	return &deliverer{
		store: s, known: make(map[string]bool), running: make(map[string]int),
		changed: make(chan struct{}), stop: func() {},
	}
}

// owner returns the generation that delivers, nil if none does.
func (d *deliverer) owner() *App {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sender == nil {
		return nil
	}
	return d.sender.app
}

// follow makes attempts go by the options of a generation. With nil no more
// deliveries are taken; attempts in flight go on.
func (d *deliverer) follow(owner *App) {
	d.mu.Lock()
	before := d.sender
	if before != nil && before.app == owner || before == nil && owner == nil {
		d.mu.Unlock()
		return
	}
	d.sender = nil
	if owner != nil {
		d.sender = newSender(d, owner)
	}
	d.wake()
	d.mu.Unlock()
	if before != nil {
		before.close()
	}
	switch {
	case owner == nil:
		d.stop()
		d.loops.Wait()
	case before == nil:
		var ctx context.Context
		ctx, d.stop = context.WithCancel(context.Background())
		d.loops.Go(func() { d.watch(ctx) })
		d.loops.Go(func() { d.take(ctx) })
	}
}

// wake tells that something has changed. Caller holds d.mu.
func (d *deliverer) wake() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// dueBatch is how many hosts the engine is asked for at once.
const dueBatch = 64

// watch learns which hosts have deliveries due.
func (d *deliverer) watch(ctx context.Context) {
	for ctx.Err() == nil {
		hosts, err := d.store.DueHosts(ctx, dueBatch)
		d.mu.Lock()
		for _, host := range hosts {
			d.add(host.Host)
		}
		d.mu.Unlock()
		d.failed(ctx, "asking for hosts with deliveries due", err)
	}
}

// add puts a host at the end of the line. Caller holds d.mu.
func (d *deliverer) add(host string) {
	if !d.known[host] {
		d.known[host] = true
		d.due = append(d.due, host)
		d.wake()
	}
}

// failed logs an error of the engine and waits a moment, so that an engine that is
// away is not asked in a tight loop.
func (d *deliverer) failed(ctx context.Context, doing string, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	d.store.logger().Warn(doing, zap.Error(err))
	select {
	case <-ctx.Done():
	case <-time.After(fetchPause):
	}
}

// take takes deliveries host by host, in turn.
func (d *deliverer) take(ctx context.Context) {
	for {
		host, n, s := d.next(ctx)
		if n == 0 {
			return
		}
		deliveries, err := d.store.Take(ctx, host, n)
		d.mu.Lock()
		d.reserve(host, len(deliveries)-n)
		if len(deliveries) == n || err != nil {
			d.add(host) // there may be more
		}
		d.mu.Unlock()
		for _, dl := range deliveries {
			d.store.use()
			go d.carryOut(s, dl, host)
		}
		d.failed(ctx, "taking deliveries", err)
	}
}

// next waits for a host that may be called, and counts n attempts to it in. n is 0
// if ctx ends first.
func (d *deliverer) next(ctx context.Context) (host string, n int, s *sender) {
	for {
		d.mu.Lock()
		for i := 0; d.sender != nil && i < len(d.due); i++ {
			host := d.due[i]
			n := min(d.sender.opts.Concurrency-d.all, d.sender.opts.PerHost-d.running[host])
			if n <= 0 {
				continue
			}
			d.due = append(d.due[:i], d.due[i+1:]...)
			delete(d.known, host)
			d.reserve(host, n)
			s := d.sender
			d.mu.Unlock()
			return host, n, s
		}
		changed := d.changed
		d.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return "", 0, nil
		}
	}
}

// reserve counts n attempts in, or out if n is negative. Caller holds d.mu.
func (d *deliverer) reserve(host string, n int) {
	d.all += n
	if d.running[host] += n; d.running[host] == 0 {
		delete(d.running, host)
	}
	if n < 0 {
		d.wake()
	}
}

// carryOut makes an attempt that is counted in.
func (d *deliverer) carryOut(s *sender, dl engine.Delivery, host string) {
	defer d.store.leave()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.reserve(host, -1)
	}()
	s.attempt(dl)
}

// storeTimeout bounds how long the outcome of an attempt is tried to be stored.
const storeTimeout = 30 * time.Second

// attempt makes one attempt and stores what follows from it.
func (s *sender) attempt(dl engine.Delivery) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.opts.Timeout)+storeTimeout)
	defer cancel()
	rec := dl.Record()
	if rec.Callback == nil { // a damaged record: nobody is called
		s.stored(rec, dl.Done(ctx))
		return
	}
	if rec.Error == task.ErrorHolderDied && rec.Tries == 0 && len(rec.Redelivered) == 0 {
		s.app.metrics.taskEnded(rec) // the engine gave the verdict
	}
	ans := s.post(dl)
	if ans.err != nil && s.d.store.quit.Err() != nil {
		ans.endSpan("")
		s.stored(rec, dl.Release(ctx)) // the process exits; the attempt does not count
		return
	}
	rec.AddAttempt(task.Attempt{
		At: ans.at, StatusCode: ans.status, DurationMS: ans.took.Milliseconds(),
		Error: ans.message(), Response: ans.excerpt,
	})
	s.conclude(ctx, dl, ans)
}

// conclude stores what follows from an attempt's answer.
func (s *sender) conclude(ctx context.Context, dl engine.Delivery, ans answer) {
	rec := dl.Record()
	rec.NextAttemptAt = time.Time{}
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
