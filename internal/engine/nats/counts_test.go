package engine

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestCountsSayHowManyTasksStandInEachState(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	e := openTemp(t, time.Minute)
	want := map[task.State]uint64{task.Running: 3, task.Delivering: 4, task.Done: 1, task.Dead: 2}
	for range want[task.Running] {
		claim(t, e, record("a:80"))
	}
	for i := range want[task.Delivering] + want[task.Done] + want[task.Dead] {
		rec := record("b:80")
		settle(t, claim(t, e, rec), rec, nil)
		d := fetch(t, e)
		var err error
		switch i {
		case 0:
			err = d.Done(t.Context())
		case 1, 2:
			err = d.Dead(t.Context())
		case 3, 4:
			err = d.Retry(t.Context(), time.Now().Add(time.Hour))
		case 5:
			if _, err = e.Lane(t.Context(), "b:80"); err == nil {
				err = d.Hold(t.Context())
			}
		default: // in hand
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// Many may count at once.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			// Acknowledgements may still be on their way.
			for {
				got, err := e.Counts(ctx)
				maps.DeleteFunc(got, func(_ task.State, n uint64) bool { return n == 0 })
				if err != nil {
					t.Error(err)
					return
				}
				if maps.Equal(got, want) {
					return
				}
			}
		})
	}
	wg.Wait()
}
