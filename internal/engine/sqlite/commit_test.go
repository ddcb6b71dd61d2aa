package sqlite

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"
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
