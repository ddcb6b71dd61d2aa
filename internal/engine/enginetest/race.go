package enginetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

var raceSuite = suite{"race", []testcase{
	{"concurrent steps are linearizable", interleavings},
	{"one verdict per job", oneVerdict},
}}

// model is the state machine of one task as documented in package engine. lease and
// delivery are those that the trial holds.
type model struct {
	state    task.State // empty: removed
	verdict  task.Verdict
	job      bool // a queue's task
	lease    bool // the lease is current
	delivery bool // the delivery is current
	taken    bool // a delivery is current
	waits    bool // waits for a time far in the future
}

// trial is one task that several steps race for.
type trial struct {
	*fixture
	id, host string
	rec      *task.Record
	lease    engine.Lease
	delivery engine.Delivery
}

// raceStep is a step with its effect on the model.
type raceStep struct {
	name  string
	do    func(t *trial) error
	apply func(m *model) error
}

// errNone is the outcome of a Take that returns nothing.
var errNone = errors.New("nothing to take")

// withLease returns the effect of a step that ends a lease.
func withLease(do func(m *model)) func(m *model) error {
	return func(m *model) error {
		if !m.lease {
			return engine.ErrLost
		}
		m.lease = false
		do(m)
		return nil
	}
}

// withDelivery returns the effect of a step that ends a delivery.
func withDelivery(do func(m *model)) func(m *model) error {
	return func(m *model) error {
		if !m.delivery {
			return engine.ErrLost
		}
		m.delivery, m.taken = false, false
		do(m)
		return nil
	}
}

// byHand returns the effect of an action.
func byHand(do func(m *model), from ...task.State) func(m *model) error {
	return func(m *model) error {
		if m.state == "" {
			return engine.ErrNotFound
		}
		for _, s := range from {
			if m.state == s {
				do(m)
				return nil
			}
		}
		return engine.ErrEnded
	}
}

func settleAs(v task.Verdict) raceStep {
	return raceStep{"settle as " + string(v), func(t *trial) error {
		return t.lease.Settle(t.ctx, settled(t.rec, v, "r"), strings.NewReader("r"))
	}, withLease(func(m *model) { m.state, m.verdict, m.waits = task.Delivering, v, false })}
}

func actAs(name string, kind engine.ActionKind, do func(m *model), from ...task.State) raceStep {
	return raceStep{name, func(t *trial) error {
		return t.e.Act(t.ctx, t.id, engine.Action{Kind: kind, Reason: "by hand"})
	}, byHand(do, from...)}
}

// raceSteps are the steps that race.
var raceSteps = []raceStep{
	settleAs(task.Complete),
	settleAs(task.TimedOut),
	{"requeue", func(t *trial) error { return t.lease.Requeue(t.ctx, t.rec, in(time.Hour)) },
		withLease(func(m *model) { m.state, m.waits = task.Queued, true })},
	{"release the lease", func(t *trial) error { return t.lease.Release(t.ctx) },
		withLease(func(m *model) {
			if m.state = ""; m.job {
				m.state = task.Queued
			}
		})},
	{"hand over", func(t *trial) error {
		q := t.queued("race")
		q.ID, q.CallbackHost, q.NextAttemptAt = t.id, t.host, in(time.Hour)
		_, _, err := t.lease.Enqueue(t.ctx, q, strings.NewReader("b"), engine.EnqueueOptions{})
		return err
	}, withLease(func(m *model) { m.state, m.job, m.waits = task.Queued, true, true })},
	actAs("cancel", engine.Cancel, func(m *model) {
		m.state, m.verdict, m.lease, m.waits = task.Delivering, task.Failed, false, false
	}, task.Queued, task.Running),
	actAs("retry now", engine.RetryNow, func(m *model) { m.waits = false }, task.Delivering),
	actAs("stop", engine.Stop, func(m *model) {
		m.state, m.delivery, m.taken, m.waits = task.Dead, false, false, false
	}, task.Delivering),
	actAs("redeliver", engine.Redeliver, func(m *model) { m.state = task.Delivering }, task.Done, task.Dead),
	actAs("delete", engine.Delete, func(m *model) { m.state = "" }, task.Done, task.Dead),
	{"done", func(t *trial) error { return t.delivery.Done(t.ctx) },
		withDelivery(func(m *model) { m.state = task.Done })},
	{"dead", func(t *trial) error { return t.delivery.Dead(t.ctx) },
		withDelivery(func(m *model) { m.state = task.Dead })},
	{"retry", func(t *trial) error { return t.delivery.Retry(t.ctx, in(time.Hour)) },
		withDelivery(func(m *model) { m.waits = true })},
	{"release the delivery", func(t *trial) error { return t.delivery.Release(t.ctx) }, withDelivery(func(*model) {})},
	{"take", func(t *trial) error {
		ds, err := t.e.Take(t.ctx, t.host, 2)
		if err == nil && len(ds) == 0 {
			err = errNone
		}
		return err
	}, func(m *model) error {
		if m.state != task.Delivering || m.taken || m.waits {
			return errNone
		}
		m.taken = true
		return nil
	}},
}

// starts prepare a trial and return the initial model.
var starts = []struct {
	name string
	make func(t *trial) model
}{
	{"claimed", func(t *trial) model {
		l, err := t.e.Claim(t.ctx, t.rec)
		t.must(err)
		t.lease = l
		return model{state: task.Running, lease: true}
	}},
	{"running job", func(t *trial) model {
		q := t.queued("q-" + t.id)
		q.ID, q.CallbackHost = t.id, t.host
		t.enqueue(q)
		j := t.next(q.Queue, 3)
		t.rec, t.lease = j.Record, j.Lease
		return model{state: task.Running, job: true, lease: true}
	}},
	{"taken", func(t *trial) model {
		t.takeNow()
		return model{state: task.Delivering, verdict: task.Complete, delivery: true, taken: true}
	}},
	{"due", func(t *trial) model {
		t.takeNow()
		t.must(t.delivery.Release(t.ctx))
		return model{state: task.Delivering, verdict: task.Complete}
	}},
	{"waiting for a retry", func(t *trial) model {
		t.takeNow()
		t.must(t.delivery.Retry(t.ctx, in(time.Hour)))
		return model{state: task.Delivering, verdict: task.Complete, waits: true}
	}},
	{"dead", func(t *trial) model {
		t.takeNow()
		t.must(t.delivery.Dead(t.ctx))
		return model{state: task.Dead, verdict: task.Complete}
	}},
}

// takeNow settles a task and takes its delivery. Trials run concurrently, so that they
// cannot wait until their host is reported.
func (t *trial) takeNow() {
	t.Helper()
	l, err := t.e.Claim(t.ctx, t.rec)
	t.must(err)
	t.lease = l
	t.settle(t.rec, l)
	for t.delivery == nil {
		ds, err := t.e.Take(t.ctx, t.host, 1)
		t.must(err)
		if len(ds) > 0 {
			t.delivery = ds[0]
		}
	}
}

func interleavings(f *fixture) {
	trials, workers := 3000, 16
	if f.opener.Cluster {
		trials = 300
	}
	seed := f.random().Uint64()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < trials && !f.Failed(); i += workers {
				f.race(rand.New(rand.NewPCG(seed, uint64(i))), i)
			}
		})
	}
	wg.Wait()
}

// race runs one trial. Up to four goroutines run one or two steps each.
func (f *fixture) race(r *rand.Rand, i int) {
	rec := f.client()
	host := fmt.Sprintf("race-%d:443", i)
	rec.CallbackHost = host
	t := &trial{fixture: f, id: rec.ID, host: host, rec: rec}
	start := starts[r.IntN(len(starts))]
	m := start.make(t)
	lines := make([][]raceStep, 2+r.IntN(3))
	for n := range lines {
		for range 1 + r.IntN(2) {
			s := raceSteps[r.IntN(len(raceSteps))]
			for !s.applies(t, m) {
				s = raceSteps[r.IntN(len(raceSteps))]
			}
			lines[n] = append(lines[n], s)
		}
	}
	outcomes := make([][]error, len(lines))
	gate := make(chan struct{})
	var wg sync.WaitGroup
	for n, line := range lines {
		wg.Go(func() {
			<-gate
			for _, s := range line {
				outcomes[n] = append(outcomes[n], s.do(t))
			}
		})
	}
	close(gate)
	wg.Wait()
	var got model
	if now, err := f.e.Get(f.ctx, t.id); err == nil {
		got = model{state: now.State, verdict: now.Status}
	} else if !errors.Is(err, engine.ErrNotFound) {
		f.Errorf("getting the task: %v", err)
	}
	if !explained(m, lines, outcomes, got, f.opener.Cluster) {
		var b strings.Builder
		for n, line := range lines {
			for k, s := range line {
				fmt.Fprintf(&b, "\n%d: %s: %v", n, s.name, outcomes[n][k])
			}
		}
		f.Errorf("trial %d: no order explains these steps of a task that was %s and is now %q, %q:%s",
			i, start.name, got.state, got.verdict, b.String())
	}
}

// applies reports whether the trial has the lease or delivery that the step needs.
func (s raceStep) applies(t *trial, m model) bool {
	switch s.name {
	case "done", "dead", "retry", "release the delivery":
		return t.delivery != nil
	case "requeue":
		return m.job
	case "hand over":
		return !m.job && t.lease != nil
	}
	return true
}

// explained reports whether some order of the steps leads the model to the observed
// outcomes and the observed end. Each line keeps its order.
func explained(m model, lines [][]raceStep, outcomes [][]error, end model, loses bool) bool {
	left := false
	for n, line := range lines {
		if len(line) == 0 {
			continue
		}
		left = true
		after := m
		want := line[0].apply(&after)
		got := outcomes[n][0]
		if loses && line[0].name == "take" && errors.Is(got, errNone) { // another gateway took it first
			after, want = m, errNone
		}
		if (want == nil) != (got == nil) || want != nil && !errors.Is(got, want) {
			continue
		}
		rest, restOutcomes := append([][]raceStep{}, lines...), append([][]error{}, outcomes...)
		rest[n], restOutcomes[n] = line[1:], outcomes[n][1:]
		if explained(after, rest, restOutcomes, end, loses) {
			return true
		}
	}
	return !left && m.state == end.state && (m.state == "" || m.verdict == end.verdict)
}

// oneVerdict checks that each job gets one verdict while workers settle, requeue and
// release jobs and others cancel them.
func oneVerdict(f *fixture) {
	jobs := 300
	if f.opener.Cluster {
		jobs = 100
	}
	seed := f.random().Uint64()
	var mu sync.Mutex
	verdicts := make(map[string][]task.Verdict)
	var all []string
	for range jobs {
		all = append(all, f.enqueue(f.queued("q")).ID)
	}
	ctx, stop := context.WithCancel(f.ctx)
	defer stop()
	decide := func(id string, v task.Verdict, err error) {
		if err != nil {
			if !errors.Is(err, engine.ErrLost) && !errors.Is(err, engine.ErrEnded) {
				f.Errorf("deciding: %v", err)
			}
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if verdicts[id] = append(verdicts[id], v); len(verdicts) == jobs {
			stop()
		}
	}
	var wg sync.WaitGroup
	for w := range 6 {
		r := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() { f.workAtRandom(ctx, r, decide) })
	}
	for w := range 3 {
		r := rand.New(rand.NewPCG(seed, uint64(100+w)))
		wg.Go(func() {
			for _, i := range r.Perm(jobs)[:jobs/3] {
				decide(all[i], task.Failed, f.e.Act(f.ctx, all[i], engine.Action{Kind: engine.Cancel}))
			}
		})
	}
	wg.Wait()
	for _, id := range all {
		got := f.in(id, task.Delivering)
		if v := verdicts[id]; len(v) != 1 || v[0] != got.Status {
			f.Errorf("task %s is %s, the verdicts were %v", id, got.Status, v)
		}
	}
}

// workAtRandom claims jobs until ctx ends.
func (f *fixture) workAtRandom(ctx context.Context, r *rand.Rand, decide func(string, task.Verdict, error)) {
	for {
		jobs, err := f.e.Jobs("q").Next(ctx, 1+r.IntN(4), 1000)
		if err != nil {
			return
		}
		for _, j := range jobs {
			switch r.IntN(4) {
			case 0:
				err = j.Lease.Release(f.ctx)
			case 1:
				err = j.Lease.Requeue(f.ctx, j.Record, in(time.Duration(r.IntN(5))*time.Millisecond))
			default:
				rec := settled(j.Record, task.Complete, "r")
				decide(rec.ID, task.Complete, j.Lease.Settle(f.ctx, rec, strings.NewReader("r")))
				continue
			}
			if err != nil && !errors.Is(err, engine.ErrLost) {
				f.Errorf("releasing a job: %v", err)
			}
		}
	}
}
