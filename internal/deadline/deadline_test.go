package deadline

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestContextEndsAfterTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const timeout = 10 * time.Second
		s := New(timeout)
		start := time.Now()
		first := s.Context()
		<-time.After(timeout/10 - 1)
		if s.Context() != first {
			t.Error("calls in one tenth of the timeout have two contexts")
		}
		<-time.After(1)
		second := s.Context()
		if second == first {
			t.Error("calls of two tenths of the timeout have the same context")
		}
		for i, ctx := range []context.Context{first, second} {
			<-ctx.Done()
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				t.Errorf("the context ends with %v", ctx.Err())
			}
			if got, want := time.Since(start), timeout+time.Duration(i+1)*timeout/10; got != want {
				t.Errorf("context %d ends after %v, want %v", i+1, got, want)
			}
		}
	})
}
