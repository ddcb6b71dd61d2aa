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
		<-time.After(timeout/100 - 1)
		if s.Context() != first {
			t.Error("calls in one hundredth of the timeout have two contexts")
		}
		<-time.After(1)
		second := s.Context()
		if second == first {
			t.Error("calls of two hundredths of the timeout have the same context")
		}
		for i, ctx := range []context.Context{first, second} {
			<-ctx.Done()
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				t.Errorf("the context ends with %v", ctx.Err())
			}
			if got, want := time.Since(start), timeout+time.Duration(i+1)*timeout/100; got != want {
				t.Errorf("context %d ends after %v, want %v", i+1, got, want)
			}
		}
	})
}

func TestContextEndsWithParent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(time.Hour)
		parent, end := context.WithCancel(t.Context())
		ctx, other := s.Below(parent), s.Below(t.Context())
		end()
		if <-ctx.Done(); !errors.Is(ctx.Err(), context.Canceled) {
			t.Errorf("the context ends with %v", ctx.Err())
		}
		if other.Err() != nil {
			t.Error("a context ends with the parent of another one")
		}
	})
}
