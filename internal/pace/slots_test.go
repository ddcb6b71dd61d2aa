package pace

import (
	"context"
	"testing"
)

func TestSlotsAreLimited(t *testing.T) {
	t.Parallel()
	s := NewSlots()
	if n := s.Acquire(t.Context(), 3); n != 3 {
		t.Errorf("took %d of three free slots", n)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n := s.Acquire(ended, 3); n != 0 {
		t.Errorf("took %d slots although none is free", n)
	}
	waited := make(chan int)
	go func() { waited <- s.Acquire(context.WithoutCancel(t.Context()), 2) }()
	s.Release(1) // two are left, which is what the new limit allows
	s.Release(1)
	if n := <-waited; n != 1 {
		t.Errorf("took %d slots, want the one that is free", n)
	}
}
