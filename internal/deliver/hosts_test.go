package deliver

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestFailuresCountUntilSuccessOrResume(t *testing.T) {
	t.Parallel()
	const host = "c.example:443"
	start := time.Now()
	failing := engine.HostState{Host: host, Failures: 2, FailingSince: start}
	for name, test := range map[string]struct {
		between func(hs *hostStates)
		want    int // failures after one more
	}{
		"nothing between":           {func(*hostStates) {}, 3},
		"a success":                 {func(hs *hostStates) { hs.learn(host, dispatch.Stats{}, &send.Answer{Status: http.StatusOK}) }, 1},
		"a report of other state":   {func(hs *hostStates) { hs.load(engine.HostState{Host: host, Failures: 9}) }, 3},
		"a report before the save":  {func(hs *hostStates) { hs.load(engine.HostState{Host: host}) }, 3},
		"a resume after the save":   {func(hs *hostStates) { hs.take(false); hs.load(engine.HostState{Host: host}) }, 1},
		"a resume before the save":  {func(hs *hostStates) { hs.markPaused(host, true); hs.load(failing) }, 1},
		"a pause that is not taken": {func(hs *hostStates) { hs.markPaused(host, true); hs.markPaused(host, false); hs.load(failing) }, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hs := newHostStates()
			fail := func() engine.HostState {
				return hs.learn(host, dispatch.Stats{}, &send.Answer{Status: http.StatusBadGateway, At: start})
			}
			fail()
			fail()
			test.between(&hs)
			if got := fail(); got.Failures != test.want || got.Host != host || got.LastStatus != http.StatusBadGateway {
				t.Errorf("the host is %+v, and should have %d failures", got, test.want)
			}
		})
	}
}

// pauser is an engine that records what was saved and paused, in order.
type pauser struct {
	Engine
	err   error
	calls []string
}

func (p *pauser) SaveHosts(_ context.Context, states []engine.HostState) error {
	for _, s := range states {
		p.calls = append(p.calls, "save "+s.Host)
	}
	return nil
}

func (p *pauser) Pause(_ context.Context, t engine.Target, _ bool) error {
	p.calls = append(p.calls, "pause "+t.Host)
	return p.err
}

func TestResumeDropsUnsavedFailures(t *testing.T) {
	t.Parallel()
	const host = "c.example:443"
	e := new(pauser)
	d := newTestDeliverer(t, e)
	fail := func() engine.HostState {
		return d.hosts.learn(host, dispatch.Stats{}, &send.Answer{At: time.Now()})
	}
	fail()
	if err := d.Resume(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	if err := d.saveNow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []string{"pause " + host}; !slices.Equal(e.calls, want) {
		t.Errorf("the calls are %q, want %q", e.calls, want)
	}
	if got := fail(); got.Failures != 1 {
		t.Errorf("the next failure is number %d", got.Failures)
	}
}

// pausedHosts is an observer that records the paused hosts.
type pausedHosts struct {
	Observer
	hosts *[]string
}

func (o pausedHosts) HostPaused(_ *task.Record, h engine.HostState) {
	*o.hosts = append(*o.hosts, h.Host)
}

func TestHostIsPausedOnceItHasFailedLongEnough(t *testing.T) {
	t.Parallel()
	const host = "c.example:443"
	start := time.Now()
	for name, test := range map[string]struct {
		after, at time.Duration
		err       error
		want      int // how often it is paused after two failures at that time
	}{
		"off":               {0, time.Hour, nil, 0},
		"too early":         {time.Hour, time.Hour - 1, nil, 0},
		"long enough":       {time.Hour, time.Hour, nil, 1},
		"the store is away": {time.Hour, 2 * time.Hour, errors.New("away"), 2}, // it tries again
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := &pauser{err: test.err}
			d := newTestDeliverer(t, e)
			var paused []string
			o := &Options{PauseAfter: test.after, Log: zap.NewNop(), Observer: pausedHosts{hosts: &paused}}
			fail := func(at time.Time) {
				state := d.hosts.learn(host, dispatch.Stats{}, &send.Answer{At: at})
				d.pauseFailing(o, new(task.Record), state, at)
			}
			fail(start)
			fail(start.Add(test.at))
			fail(start.Add(test.at))
			pauses := 0
			for i, call := range e.calls {
				if call == "pause "+host {
					pauses++
					if i == 0 || e.calls[i-1] != "save "+host {
						t.Errorf("the calls are %q: the state must be saved before", e.calls)
					}
				}
			}
			if pauses != test.want || len(paused) != 1 && test.want == 1 || len(paused) != 0 && test.want != 1 {
				t.Errorf("it was paused %d times, and observed %q", pauses, paused)
			}
		})
	}
}
