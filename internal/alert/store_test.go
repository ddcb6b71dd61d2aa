package alert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// unreliable is an engine whose calls return errors first. It has one task.
type unreliable struct {
	engine.Engine
	engine.Lease
	errs    []error // of the next calls
	claimed int
	settled []*task.Record
	body    []byte
	stats   engine.Stats
}

func (u *unreliable) next() error {
	if len(u.errs) == 0 {
		return nil
	}
	err := u.errs[0]
	u.errs = u.errs[1:]
	return err
}

func (u *unreliable) Claim(context.Context, *task.Record) (engine.Lease, error) {
	if err := u.next(); err != nil {
		return nil, err
	}
	u.claimed++
	return u, nil
}

func (u *unreliable) Settle(_ context.Context, rec *task.Record, result io.Reader) (err error) {
	if err := u.next(); err != nil {
		return err
	}
	u.settled = append(u.settled, rec)
	u.body, err = io.ReadAll(result)
	return err
}

func (u *unreliable) Stats(context.Context) (engine.Stats, error) { return u.stats, u.next() }

// Both interfaces have it.
func (u *unreliable) Enqueue(context.Context, *task.Record, io.Reader, engine.EnqueueOptions) (string, bool, error) {
	return "", false, engine.ErrUnavailable
}

func TestStoreRepeatsWhileStoreIsUnavailable(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	full, away := fmt.Errorf("claiming: %w", engine.ErrFull), fmt.Errorf("settling: %w", engine.ErrUnavailable)
	for name, tt := range map[string]struct {
		errs     []error
		stopping bool // the process exits already
		want     error
		settled  int
	}{
		"a store that answers":         {nil, false, nil, 1},
		"a full store":                 {[]error{full, full, full}, false, nil, 1},
		"a store that stays full":      {slices.Repeat([]error{full}, 1000), false, engine.ErrFull, 0},
		"a store that refuses":         {[]error{broken}, false, broken, 0},
		"unavailable for the verdict":  {[]error{nil, away, away, full}, false, nil, 1},
		"a verdict that is refused":    {[]error{nil, broken}, false, broken, 0},
		"a verdict that was stored":    {[]error{nil, away, engine.ErrLost}, false, nil, 0},
		"an exit":                      {nil, true, nil, 1},
		"an exit with a full store":    {[]error{full}, true, engine.ErrFull, 0},
		"an exit before the verdict":   {[]error{nil, away}, true, engine.ErrUnavailable, 0},
		"unavailable for half an hour": {slices.Concat([]error{nil}, slices.Repeat([]error{away}, 1800)), false, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.stopping {
					cancel()
				}
				u := &unreliable{errs: slices.Clone(tt.errs)}
				r := &Receiver{URL: "https://ops.example/", Host: "ops.example:443", TaskHeader: "id", StatusHeader: "status", MaxResult: 1 << 10}
				err := r.Store(ctx, u, Alert{Type: Dead, Count: 1})
				if !errors.Is(err, tt.want) || len(u.settled) != tt.settled {
					t.Errorf("%d verdicts are stored: %v", len(u.settled), err)
				}
			})
		})
	}
}

func TestAlertIsATask(t *testing.T) {
	t.Parallel()
	u := new(unreliable)
	r := &Receiver{URL: "https://ops.example/", Host: "ops.example:443", TaskHeader: "id", StatusHeader: "status", MaxResult: 1 << 10}
	if err := r.Store(t.Context(), u, Alert{Type: HostPaused, Count: 3, Data: map[string]any{"callback_host": "a"}}); err != nil {
		t.Fatal(err)
	}
	rec := u.settled[0]
	var body Alert
	if err := json.Unmarshal(u.body, &body); err != nil || body.Type != HostPaused || body.Count != 3 || body.Data["callback_host"] != "a" {
		t.Errorf("the body is %s: %v", u.body, err)
	}
	if !Is(rec) || rec.Status != task.Complete || rec.CallbackHost != "ops.example:443" || !rec.Callback.Trusted || rec.Result.Size != int64(len(u.body)) {
		t.Errorf("the task is %+v", rec)
	}
	if Is(&task.Record{RequestMethod: "GET", RequestPath: "alert/x"}) || Is(new(task.Record)) {
		t.Error("a request is an alert")
	}
}

func TestWatchReportsFillLevel(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		stats engine.Stats
		err   error
		want  int
	}{
		"below":       {engine.Stats{Used: 899, Limit: 1000}, nil, 0},
		"nearly full": {engine.Stats{Used: 900, Limit: 1000}, nil, 3},
		"no limit":    {engine.Stats{Used: 900}, nil, 0},
		"unavailable": {engine.Stats{Used: 900, Limit: 1000}, engine.ErrUnavailable, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				u := &unreliable{stats: tt.stats}
				if tt.err != nil {
					u.errs = []error{tt.err, tt.err, tt.err, tt.err}
				}
				var levels []map[string]any
				checks := 0
				var w Watch
				w.Stop() // it watches nothing yet
				w.Start(u, Checks{
					NearlyFull: func(level map[string]any) { levels = append(levels, level) },
					Due:        func(time.Time) { checks++ },
				})
				<-time.After(3*checkInterval - 1)
				w.Stop()
				w.Stop()
				if len(levels) != tt.want || tt.want > 0 && !maps.Equal(levels[0], map[string]any{"used": int64(900), "limit": int64(1000)}) {
					t.Errorf("the levels are %v", levels)
				}
				if checks != 3 {
					t.Errorf("%d checks in less than three intervals", checks)
				}
			})
		})
	}
}
