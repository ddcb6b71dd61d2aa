package callback

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func limitedHosts(concurrency, perHost int) *hosts {
	hs := newHosts()
	hs.setLimits(concurrency, perHost)
	return hs
}

// answersOnce lets a host answer, so that it is known to.
func (hs *hosts) answersOnce(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if got := hs.start(name); got != begins {
			t.Fatalf("the first attempt to %s is %d", name, got)
		}
		hs.heard(name, true)
		hs.leave(name)
	}
}

// fill starts attempts until one does not begin, and returns how many began and
// why the last did not.
func (hs *hosts) fill(name string) (n int, why turn) {
	for {
		if why = hs.start(name); why != begins {
			return n, why
		}
		n++
	}
}

func TestAHostThatAnswersHasItsLimit(t *testing.T) {
	t.Parallel()
	hs := limitedHosts(256, 32)
	hs.answersOnce(t, "good")
	if n, why := hs.fill("good"); n != 32 || why != full {
		t.Errorf("%d attempts began, then %d", n, why)
	}
	hs.leave("good")
	if n, _ := hs.fill("good"); n != 1 {
		t.Errorf("%d attempts began when one had ended", n)
	}
}

func TestAHostThatHasNotAnsweredHasAnEighth(t *testing.T) {
	t.Parallel()
	hs := limitedHosts(256, 32)
	if n, why := hs.fill("new"); n != 4 || why != full {
		t.Errorf("%d attempts began, then %d", n, why)
	}
	hs.heard("new", true)
	if n, _ := hs.fill("new"); n != 28 {
		t.Errorf("%d more began when it had answered", n)
	}
}

func TestAHostThatFallsSilentIsBackAtAnEighth(t *testing.T) {
	t.Parallel()
	hs := limitedHosts(256, 32)
	hs.answersOnce(t, "host")
	hs.fill("host")
	for range 32 {
		hs.heard("host", false)
		hs.leave("host")
	}
	if n, _ := hs.fill("host"); n != 4 {
		t.Errorf("%d attempts began", n)
	}
	// One failure among answers is no silence.
	hs.heard("host", true)
	hs.heard("host", false)
	if n, _ := hs.fill("host"); n != 28 {
		t.Errorf("%d more began when it had answered", n)
	}
}

func TestAnyNumberOfMuteHostsLeavesRoomForThoseThatAnswer(t *testing.T) {
	t.Parallel()
	hs := limitedHosts(256, 32)
	hs.answersOnce(t, "good", "better")
	for i := range 10_000 {
		hs.fill(fmt.Sprint("hole", i))
	}
	if hs.running != 192 || hs.mute != 192 {
		t.Errorf("%d attempts are made, %d of them to mute hosts", hs.running, hs.mute)
	}
	for _, name := range []string{"good", "better"} {
		if n, why := hs.fill(name); n != 4 || why != full {
			t.Errorf("%d attempts to %s began, then %d", n, name, why)
		}
	}
	if n := len(hs.all); n != 192/4+2 {
		t.Errorf("%d hosts are remembered", n)
	}
}

func TestHostsThatFallSilentTogetherLeaveRoomToo(t *testing.T) {
	t.Parallel()
	hs := limitedHosts(256, 32)
	names := make([]string, 10)
	for i := range names {
		names[i] = fmt.Sprint("flooded", i)
	}
	hs.answersOnce(t, append(names, "good")...)
	for _, name := range names {
		hs.fill(name)
	}
	if n, _ := hs.fill("good"); n != 4 {
		t.Errorf("%d attempts began beside hosts that take all they get", n)
	}
}

func TestNoLimitIsEverExceededAndEverythingEnds(t *testing.T) {
	t.Parallel()
	for _, limits := range [][2]int{{1, 1}, {2, 1}, {2, 32}, {3, 2}, {8, 3}, {7, 32}, {256, 32}} {
		concurrency, perHost := limits[0], limits[1]
		t.Run(fmt.Sprint(limits), func(t *testing.T) {
			t.Parallel()
			hs := limitedHosts(concurrency, perHost)
			var mu sync.Mutex
			running := make(map[string]int)
			all, most := 0, 0
			enter := func(name string, n int) {
				mu.Lock()
				defer mu.Unlock()
				running[name] += n
				all += n
				most = max(most, all)
				if running[name] > perHost || all > concurrency {
					t.Errorf("%d attempts at once, %d of them to %s", all, running[name], name)
				}
			}
			var wg sync.WaitGroup
			for i := range 2000 {
				wg.Go(func() {
					name := fmt.Sprint(i % 5)
					if err := hs.await(t.Context(), name); err != nil {
						t.Error(err)
						return
					}
					enter(name, 1)
					hs.heard(name, i%7 != 0)
					enter(name, -1)
					hs.leave(name)
				})
			}
			wg.Wait()
			if hs.running != 0 || hs.mute != 0 || len(hs.all) != 0 || hs.waiting.Len() != 0 {
				t.Errorf("left over: %d running, %d mute, %d hosts, %d waiting", hs.running, hs.mute, len(hs.all), hs.waiting.Len())
			}
			if most == 0 {
				t.Error("nothing ran")
			}
		})
	}
}

func TestWhoWaitsIsServedInOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hs := limitedHosts(1, 1)
		hs.start("busy")
		served := make(chan int, 10)
		for i := range 10 {
			go func() {
				if err := hs.await(t.Context(), fmt.Sprint(i)); err != nil {
					t.Error(err)
				}
				served <- i
			}()
			synctest.Wait()
		}
		for want := range 10 {
			hs.leave(map[bool]string{true: "busy", false: fmt.Sprint(want - 1)}[want == 0])
			if got := <-served; got != want {
				t.Errorf("%d was served in place of %d", got, want)
			}
		}
	})
}

func TestAWaitThatEndsTakesNoTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hs := limitedHosts(1, 1)
		hs.start("a")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- hs.await(ctx, "b")
		}()
		synctest.Wait()
		cancel()
		if err := <-ended; err == nil {
			t.Error("it began")
		}
		hs.leave("a")
		if hs.start("c") != begins {
			t.Error("the room is lost")
		}
		if len(hs.all) != 1 || hs.waiting.Len() != 0 {
			t.Errorf("%d hosts, %d waiting", len(hs.all), hs.waiting.Len())
		}
	})
}

func TestWhoWaitsForSoLongTakesNoTurnAfterwards(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hs := limitedHosts(1, 1)
		hs.start("a")
		began := time.Now()
		if err := hs.awaitFor(t.Context(), "b", time.Second); err == nil || time.Since(began) != time.Second {
			t.Errorf("the wait ended after %v: %v", time.Since(began), err)
		}
		hs.leave("a")
		if err := hs.awaitFor(t.Context(), "b", time.Second); err != nil {
			t.Error(err)
		}
		if hs.start("c") == begins || len(hs.all) != 1 || hs.waiting.Len() != 0 {
			t.Errorf("%d hosts, %d waiting", len(hs.all), hs.waiting.Len())
		}
	})
}

func TestHigherLimitsLetThoseInWhoWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hs := limitedHosts(1, 1)
		hs.start("a")
		began := make(chan struct{})
		go func() {
			if err := hs.await(t.Context(), "b"); err == nil {
				close(began)
			}
		}()
		synctest.Wait()
		hs.setLimits(4, 1)
		<-began
	})
}

func TestNamesOfHostsDoNotPileUp(t *testing.T) {
	t.Parallel()
	hs := limitedHosts(8, 2)
	for i := range 10 * maxRecent {
		hs.answersOnce(t, fmt.Sprint(i))
		hs.isMute(fmt.Sprint("other", i))
	}
	if len(hs.all) != 0 {
		t.Errorf("%d hosts are kept that have no attempts", len(hs.all))
	}
	if n := len(hs.answering.now) + len(hs.answering.before); n > 2*maxRecent {
		t.Errorf("%d names are remembered", n)
	}
	if !hs.answering.has(fmt.Sprint(10*maxRecent-1)) || hs.answering.has("0") {
		t.Error("the wrong names are remembered")
	}
}
