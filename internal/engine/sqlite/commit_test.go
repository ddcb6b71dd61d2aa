package sqlite

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestChangesAreWithdrawnUntilTheCommitBegins ends the contexts of a change that is being
// committed and of one that waits for the next commit.
func TestChangesAreWithdrawnUntilTheCommitBegins(t *testing.T) {
	t.Parallel()
	s := openTest(t, Config{})
	begun, finish := make(chan struct{}), make(chan struct{})
	outcomes := [2]chan error{make(chan error, 1), make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		outcomes[0] <- s.update(ctx, func(*tx) error {
			close(begun)
			<-finish
			return nil
		})
	}()
	<-begun
	applied := false
	go func() {
		outcomes[1] <- s.update(ctx, func(*tx) error {
			applied = true
			return nil
		}, "a file")
	}()
	waits := func() bool {
		s.batchMu.Lock()
		defer s.batchMu.Unlock()
		return s.batch != nil && slices.ContainsFunc(s.batch.ops, func(o op) bool { return len(o.files) > 0 })
	}
	for !waits() {
		runtime.Gosched()
	}
	cancel()
	if err := <-outcomes[1]; !errors.Is(err, context.Canceled) {
		t.Errorf("the change that waits returns %v", err)
	}
	close(finish)
	if err := <-outcomes[0]; err != nil {
		t.Errorf("the change that is being committed returns %v", err)
	}
	must(t, s.update(t.Context(), func(*tx) error { return nil }))
	if applied {
		t.Error("a withdrawn change was applied")
	}
}

// TestEndOfDeliveryWaitsForUrgentChange ends a delivery while nothing else is stored, and
// one shortly before a change that somebody waits for.
func TestEndOfDeliveryWaitsForUrgentChange(t *testing.T) {
	t.Parallel()
	for name, urgentAfter := range map[string]time.Duration{"alone": time.Hour, "with an urgent change": patience / 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openTest(t, Config{})
				settled(t, s, newTask("a.test:443"), "result")
				d := takeOne(t, s, "a.test:443")
				synctest.Wait() // for the first search for expired tasks
				began := time.Now()
				time.AfterFunc(urgentAfter, func() { _ = s.update(context.Background(), func(*tx) error { return nil }) })
				must(t, d.Done(t.Context()))
				if took, want := time.Since(began), min(patience, urgentAfter); took != want {
					t.Errorf("it is stored after %v, not after %v", took, want)
				}
			})
		})
	}
}
