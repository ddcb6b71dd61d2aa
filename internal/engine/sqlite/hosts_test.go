package sqlite

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// report returns the only host that DueHosts reports.
func report(t *testing.T, s *store) engine.HostDue {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hosts, err := s.DueHosts(ctx, 2)
	must(t, err)
	if len(hosts) != 1 {
		t.Fatalf("%d hosts are reported, not 1", len(hosts))
	}
	return hosts[0]
}

// Most first deliveries are to hosts about which memory has everything.
func TestHostInMemoryIsReportedWithoutRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openTest(t, Config{})
		const host = "a.test:443"
		first := newTask(host)
		first.Callback.Trusted = true
		settled(t, s, first, "result")
		report(t, s)
		taken, err := s.Take(t.Context(), host, 2) // one more than there is
		must(t, err)
		must(t, taken[0].Done(t.Context()))
		saved := engine.HostState{Host: host, Window: 7, Failures: 2, FailingSince: time.Now(), Paused: true}
		must(t, s.SaveHosts(t.Context(), []engine.HostState{saved}))
		settled(t, s, newTask(host), "result")

		for range readers {
			s.reading <- struct{}{} // a read would wait
		}
		got := report(t, s)
		for range readers {
			<-s.reading
		}
		if got.Due != 1 || !got.Trusted || got.Window != 7 || got.Failures != 2 || got.Paused {
			t.Errorf("the report is %+v", got)
		}

		must(t, s.Pause(t.Context(), engine.Target{Host: host}, true))
		must(t, s.Pause(t.Context(), engine.Target{Host: host}, false))
		if got = report(t, s); got.Due != 1 || got.Window != 7 || got.Failures != 0 {
			t.Errorf("after it was resumed, the report is %+v", got)
		}
		closeTest(t, s)
	})
}

// If a delivery of a host that was reported becomes due, DueHosts must still wake up for
// other hosts.
func TestReportedHostHidesNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openTest(t, Config{})
		for range 2 {
			settled(t, s, newTask("a.test:443"), "result")
		}
		report(t, s)
		d := takeOne(t, s, "a.test:443") // it stays reported: there may be more
		reported := make(chan string)
		go func() {
			hosts, _ := s.DueHosts(t.Context(), 1)
			for _, h := range hosts {
				reported <- h.Host
			}
			close(reported)
		}()
		synctest.Wait() // until DueHosts waits
		must(t, d.Retry(t.Context(), time.Now()))
		synctest.Wait()
		began, other := time.Now(), newTask("b.test:443")
		other.State, other.Status, other.NextAttemptAt = task.Delivering, task.Complete, began
		must(t, s.Import(t.Context(), other, nil, nil))
		if host := <-reported; host != "b.test:443" || time.Since(began) > 0 {
			t.Errorf("after %v, %q is reported", time.Since(began), host)
		}
		closeTest(t, s)
	})
}

// A read that began before a delivery became due again does not see it, and takes its host
// off the list.
func TestDueDeliveryOutlivesOlderRead(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	settled(t, s, newTask("a.test:443"), "result")
	_, err := s.DueHosts(t.Context(), 1)
	must(t, err)
	taken, err := s.Take(t.Context(), "a.test:443", 2)
	must(t, err)
	before := time.Now()
	s.mu.Lock()
	s.passed = passed{at: time.Now().UnixNano()}
	s.mu.Unlock()
	must(t, taken[0].Retry(t.Context(), before))
	s.mu.Lock()
	h := s.popReady(false)
	s.host("a.test:443").reported = false // as report leaves it if it counts none
	s.mu.Unlock()
	if h == nil {
		t.Fatal("the host is not listed")
	}
	hosts, err := s.DueHosts(t.Context(), 1)
	must(t, err)
	if len(hosts) != 1 || hosts[0].Due != 1 {
		t.Errorf("the hosts are %+v", hosts)
	}
}

// A trusted host that is no longer in memory is still trusted when its state is saved.
func TestForgottenHostStaysTrusted(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	trusted := newTask("a.test:443")
	trusted.Callback.Trusted = true
	settled(t, s, trusted, "result")
	report(t, s)
	must(t, takeOne(t, s, "a.test:443").Done(t.Context()))
	s.mu.Lock()
	s.hostsAt = 0
	s.dropHosts()
	forgotten := s.hosts["a.test:443"] == nil
	s.mu.Unlock()
	if !forgotten {
		t.Fatal("the host is still in memory")
	}
	_, err := s.Take(t.Context(), "a.test:443", 1)
	must(t, err)
	must(t, s.SaveHosts(t.Context(), []engine.HostState{{Host: "a.test:443", Window: 4, AnsweredAt: time.Now()}}))
	settled(t, s, newTask("a.test:443"), "result")
	hosts, err := s.DueHosts(t.Context(), 1)
	must(t, err)
	if !hosts[0].Trusted {
		t.Error("the host is not trusted")
	}
}
