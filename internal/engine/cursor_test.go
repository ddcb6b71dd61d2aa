package engine

import (
	"errors"
	"testing"
)

func TestCursorHasItsPosition(t *testing.T) {
	t.Parallel()
	for _, position := range []string{"x", "3 a.test:443", "1.2.3", "\xff"} {
		got, err := NewCursor(position).Position()
		if err != nil || got != position {
			t.Errorf("the position of the cursor of %q is %q, %v", position, got, err)
		}
	}
}

func TestDamagedCursor(t *testing.T) {
	t.Parallel()
	whole := NewCursor("12.zz")
	damaged := []Cursor{"zzz", ".", "x.", ".00000001", whole + "0"}
	for i := 1; i < len(whole); i++ {
		flipped := []byte(whole)
		flipped[i] ^= 1
		damaged = append(damaged, whole[:i], whole[i:], Cursor(flipped))
	}
	for _, c := range damaged {
		if position, err := c.Position(); !errors.Is(err, ErrCursor) {
			t.Errorf("the position of the cursor %q is %q, %v", c, position, err)
		}
	}
}
