package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// shape has the properties of a task that are checked. The zero shape means that there
// is no task.
type shape struct {
	state   task.State
	job     bool // a queue's task
	status  task.Verdict
	failure string
	tries   int
	request []byte // nil if it is not kept
	result  []byte // nil if it is not kept
}

// answer is the outcome of a step as the client knows it.
type answer int

const (
	acknowledged answer = iota
	refusedStep
	unheard // the process died before it answered
)

// stepTaken is an operation on a task, between two positions of the recording.
type stepTaken struct {
	what       string
	begin, end int
	answer     answer
	after      shape
}

// tracked is a task with its steps and its current state.
type tracked struct {
	id       string
	callback bool
	key      string // hash of its idempotency key
	steps    []stepTaken
	now      shape
	lease    engine.Lease
	rec      *task.Record
}

// client operates on its own tasks through an engine, one operation after the other.
type client struct {
	t     *testing.T
	rng   *rand.Rand
	p     *process
	e     engine.Engine
	name  string
	keep  bool // results are kept
	tasks []*tracked
	keys  map[string]string // IDs by hash
}

const maxStartsEver = 1000

// do runs an operation on a task and records it. If insist is set, the operation is
// repeated until it is stored.
func (c *client) do(k *tracked, what string, insist bool, after *shape, f func() error) bool {
	for range 100 {
		s := stepTaken{what: what, begin: c.p.position()}
		err := f()
		s.end, s.after = c.p.position(), *after
		switch {
		case c.p.dead.Load():
			s.answer, s.end = unheard, math.MaxInt
		case err != nil:
			s.answer = refusedStep
		}
		k.steps = append(k.steps, s)
		if s.answer == acknowledged {
			k.now = *after
			return true
		}
		if s.answer == unheard {
			return false
		}
		if !errors.Is(err, engine.ErrUnavailable) {
			c.t.Errorf("%s of %s: %v", what, k.id, err)
			return false
		}
		if !insist {
			return false
		}
	}
	c.t.Errorf("%s of %s is refused for good", what, k.id)
	return false
}

// content returns unique bytes. Now and then they are so many that they are stored as a
// file.
func (c *client) content() []byte {
	n := c.rng.IntN(600)
	switch c.rng.IntN(12) {
	case 0:
		n = maxInline + 1 + c.rng.IntN(20_000)
	case 1, 2:
		n = c.rng.IntN(30_000)
	}
	b := make([]byte, n)
	seed := [32]byte{}
	for i := range 8 {
		seed[i] = byte(c.rng.Uint32())
	}
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

func (c *client) newTracked(callback bool) (*tracked, *task.Record) {
	host := ""
	if callback {
		host = c.name + ".test:443"
	}
	rec := newTask(host)
	rec.CallbackDomain = c.name + ".test"
	k := &tracked{id: rec.ID, callback: callback, rec: rec}
	c.tasks = append(c.tasks, k)
	return k, rec
}

// some returns a random task that fits. It returns nil if there is none.
func (c *client) some(fits func(*tracked) bool) *tracked {
	var found []*tracked
	for _, k := range c.tasks {
		if fits(k) {
			found = append(found, k)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[c.rng.IntN(len(found))]
}

func in(states ...task.State) func(*tracked) bool {
	return func(k *tracked) bool { return slices.Contains(states, k.now.state) }
}

// run runs n random operations.
func (c *client) run(ctx context.Context, n int) {
	for range n {
		if c.p.dead.Load() || c.t.Failed() {
			return
		}
		switch i := c.rng.IntN(20); {
		case i < 4:
			c.claim(ctx)
		case i < 7:
			c.enqueue(ctx)
		case i < 9:
			c.start(ctx)
		case i < 14:
			c.end(ctx)
		case i < 18:
			c.deliver(ctx)
		default:
			c.act(ctx)
		}
	}
}

func (c *client) claim(ctx context.Context) {
	k, rec := c.newTracked(c.rng.IntN(5) > 0)
	c.do(k, "claim", false, &shape{state: task.Running}, func() (err error) {
		k.lease, err = c.e.Claim(ctx, rec)
		return err
	})
}

func (c *client) enqueue(ctx context.Context) {
	k, rec := c.newTracked(c.rng.IntN(2) == 0)
	rec.Queue, rec.Request = c.name, &task.Request{Method: "POST", URI: "/"}
	body := c.content()
	var opts engine.EnqueueOptions
	if c.rng.IntN(3) == 0 {
		hash := fmt.Sprintf("%s-%d", c.name, c.rng.IntN(8))
		opts.Key = &engine.Key{Hash: hash, Digest: func() string { return "same" }}
		if first := c.keys[hash]; first != "" {
			id, again, err := c.e.Enqueue(ctx, rec, bytes.NewReader(body), opts)
			if !c.p.dead.Load() && !errors.Is(err, engine.ErrUnavailable) && (err != nil || again || id != first) {
				c.t.Errorf("a known key was answered with %s, %v, %v, not %s", id, again, err, first)
			}
			return
		}
		k.key = hash
	}
	stored := c.do(k, "enqueue", false, &shape{state: task.Queued, job: true, request: body}, func() error {
		_, _, err := c.e.Enqueue(ctx, rec, bytes.NewReader(body), opts)
		return err
	})
	if stored && k.key != "" {
		c.keys[k.key] = k.id
	}
}

// start claims jobs of a queue.
func (c *client) start(ctx context.Context) {
	if c.some(in(task.Queued)) == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	begin := c.p.position()
	jobs, err := c.e.Jobs(c.name).Next(ctx, 1+c.rng.IntN(2), maxStartsEver)
	end := c.p.position()
	if err != nil && !c.p.dead.Load() && !errors.Is(err, engine.ErrUnavailable) {
		c.t.Errorf("no job was handed out: %v", err)
	}
	if c.p.dead.Load() {
		end = math.MaxInt
	}
	for _, job := range jobs {
		i := slices.IndexFunc(c.tasks, func(k *tracked) bool { return k.id == job.Record.ID })
		k := c.tasks[i]
		if k.now.state != task.Queued {
			c.t.Errorf("job %s is handed out while it is %s", k.id, k.now.state)
		}
		s := stepTaken{what: "start", begin: begin, end: end, after: k.now}
		s.after.state = task.Running
		if end == math.MaxInt {
			s.answer = unheard
		}
		k.steps, k.lease, k.rec, k.now = append(k.steps, s), job.Lease, job.Record, s.after
	}
}

// end ends a lease in a random way.
func (c *client) end(ctx context.Context) {
	k := c.some(in(task.Running))
	if k == nil {
		return
	}
	after := k.now
	switch i := c.rng.IntN(10); {
	case i == 0 && !k.now.job:
		c.do(k, "release", true, &shape{}, func() error { return k.lease.Release(ctx) })
	case i == 0:
		after.state = task.Queued
		c.do(k, "release", true, &after, func() error { return k.lease.Release(ctx) })
	case i == 1 && k.now.job:
		after.state = task.Queued
		c.do(k, "requeue", true, &after, func() error { return k.lease.Requeue(ctx, k.rec, time.Time{}) })
	case i == 1:
		k.rec.Queue = c.name
		after = shape{state: task.Queued, job: true, request: c.content()}
		c.do(k, "hand over", true, &after, func() error {
			_, _, err := k.lease.Enqueue(ctx, k.rec, bytes.NewReader(after.request), engine.EnqueueOptions{})
			return err
		})
	default:
		c.settle(ctx, k)
	}
}

func (c *client) settle(ctx context.Context, k *tracked) {
	after := shape{state: task.Done, job: k.now.job, status: task.Complete}
	if k.callback {
		after.state = task.Delivering
	}
	k.rec.Status = task.Complete
	var result []byte
	if c.rng.IntN(8) == 0 {
		k.rec.Status, k.rec.Error = task.TimedOut, "it took too long"
		after.status, after.failure = k.rec.Status, k.rec.Error
	} else {
		result = c.content()
	}
	c.do(k, "settle", c.rng.IntN(10) > 0, &after, func() error {
		if result == nil {
			return k.lease.Settle(ctx, k.rec, nil)
		}
		k.rec.Result = &task.Result{Size: int64(len(result))}
		err := k.lease.Settle(ctx, k.rec, bytes.NewReader(result))
		// A body that the disk refuses is cut.
		after.result = result[:min(k.rec.Result.Kept, int64(len(result)))]
		if err == nil && len(after.result) != len(result) && len(after.result) != cutResult {
			c.t.Errorf("%d of %d bytes of a result are kept", len(after.result), len(result))
		}
		return err
	})
	k.rec.Status, k.rec.Error, k.rec.Result = "", "", nil // if it was not stored
}

// deliver takes deliveries and ends them.
func (c *client) deliver(ctx context.Context) {
	taken, err := c.e.Take(ctx, c.name+".test:443", 1+c.rng.IntN(3))
	if err != nil && !c.p.dead.Load() && !errors.Is(err, engine.ErrUnavailable) {
		c.t.Errorf("taking deliveries: %v", err)
	}
	for _, d := range taken {
		k := c.tasks[slices.IndexFunc(c.tasks, func(k *tracked) bool { return k.id == d.Record().ID })]
		if c.p.dead.Load() {
			return
		}
		if k.now.state != task.Delivering {
			c.t.Errorf("a delivery of %s is handed out while it is %s", k.id, k.now.state)
		}
		after := k.now
		after.tries++
		switch i := c.rng.IntN(8); {
		case i < 4:
			d.Record().AddAttempt(task.Attempt{StatusCode: 200})
			after.state = task.Done
			if !c.keep && !k.now.job && len(k.now.result) > 0 {
				after.result = nil
			}
			c.do(k, "done", true, &after, func() error { return d.Done(ctx) })
		case i < 6:
			d.Record().AddAttempt(task.Attempt{StatusCode: 500})
			at := time.Now().Add([]time.Duration{0, time.Hour}[c.rng.IntN(2)])
			c.do(k, "retry", true, &after, func() error { return d.Retry(ctx, at) })
		case i < 7:
			d.Record().AddAttempt(task.Attempt{StatusCode: 410})
			after.state = task.Dead
			c.do(k, "dead", true, &after, func() error { return d.Dead(ctx) })
		default:
			if err := d.Release(ctx); err != nil && !c.p.dead.Load() {
				c.t.Errorf("releasing a delivery: %v", err)
			}
		}
	}
}

// act applies a random action to a task.
func (c *client) act(ctx context.Context) {
	var (
		k     *tracked
		what  string
		a     engine.Action
		after shape
	)
	switch c.rng.IntN(5) {
	case 0:
		if k = c.some(in(task.Queued, task.Running)); k != nil {
			what, a = "cancel", engine.Action{Kind: engine.Cancel, Reason: "canceled"}
			after = shape{state: task.Done, job: k.now.job, status: task.Failed, failure: "canceled"}
			if k.callback {
				after.state = task.Delivering
			}
		}
	case 1:
		if k = c.some(in(task.Delivering)); k != nil {
			what, a, after = "stop", engine.Action{Kind: engine.Stop}, k.now
			after.state = task.Dead
		}
	case 2:
		if k = c.some(in(task.Delivering)); k != nil {
			what, a, after = "retry now", engine.Action{Kind: engine.RetryNow}, k.now
		}
	case 3:
		k = c.some(func(k *tracked) bool {
			return k.callback && (k.now.state == task.Dead || k.now.state == task.Done && k.now.result != nil)
		})
		if k != nil {
			what, a, after = "redeliver", engine.Action{Kind: engine.Redeliver}, k.now
			after.state, after.tries = task.Delivering, 0
		}
	default:
		if k = c.some(in(task.Done, task.Dead)); k != nil {
			what, a = "delete", engine.Action{Kind: engine.Delete}
		}
	}
	if k == nil {
		return
	}
	held := k.now.state == task.Running
	stored := c.do(k, what, c.rng.IntN(2) == 0, &after, func() error { return c.e.Act(ctx, k.id, a) })
	if held && stored {
		k.rec.Status = task.Complete
		err := k.lease.Settle(ctx, k.rec, nil)
		if !c.p.dead.Load() && !errors.Is(err, engine.ErrLost) && !errors.Is(err, engine.ErrUnavailable) {
			c.t.Errorf("a second verdict on %s: %v", k.id, err)
		}
	}
}
