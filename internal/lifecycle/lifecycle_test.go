package lifecycle_test

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/caddy-callback/caddy-callback/internal/lifecycle"
)

func TestGenerations(t *testing.T) {
	t.Parallel()
	var l lifecycle.Generations[string]
	want := func(step string, newest, running string, alive ...string) {
		t.Helper()
		if l.Newest() != newest || l.NewestRunning() != running || !slices.Equal(l.Alive(), alive) {
			t.Errorf("%s: the newest is %q, the newest running %q, alive are %q", step, l.Newest(), l.NewestRunning(), l.Alive())
		}
		for _, g := range []string{"first", "second"} {
			if l.IsAlive(g) != slices.Contains(alive, g) {
				t.Errorf("%s: whether %s is alive is %v", step, g, l.IsAlive(g))
			}
		}
	}
	want("without any", "", "")
	if l.Drain("first") {
		t.Error("a generation was alive that was never added")
	}
	l.Remove("first")
	l.Add("first")
	want("the first", "first", "first", "first")
	l.Add("second")
	want("a reload", "second", "second", "first", "second")
	if !l.Drain("first") || l.Drain("first") {
		t.Error("a generation is alive until it is drained once")
	}
	l.Remove("first")
	want("the first has stopped", "second", "second", "second")
	l.Drain("second")
	want("the second drains", "", "second")
	l.Remove("second")
	l.Remove("second")
	want("all have stopped", "", "")
}

func TestNewestFallsBackAfterFailedReload(t *testing.T) {
	t.Parallel()
	var l lifecycle.Generations[string]
	l.Add("first")
	l.Add("second")
	l.Drain("second")
	if l.Newest() != "first" || l.NewestRunning() != "second" {
		t.Errorf("the newest is %q, the newest running %q", l.Newest(), l.NewestRunning())
	}
	l.Remove("second")
	if l.NewestRunning() != "first" {
		t.Errorf("the newest running is %q", l.NewestRunning())
	}
}

func TestGateWaitsForItsUsers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g lifecycle.Gate
		g.Wait() // nobody is inside
		g.Enter()
		waited := make(chan struct{})
		go func() {
			g.Wait()
			close(waited)
		}()
		synctest.Wait()
		g.Enter() // while the other goroutine waits
		g.Leave()
		synctest.Wait()
		select {
		case <-waited:
			t.Error("Wait returned while a user was inside")
		default:
		}
		g.Leave()
		<-waited
		g.Wait()
	})
}
