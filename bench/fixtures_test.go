package main

import (
	"context"
	"path/filepath"
	"testing"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/engine/sqlite"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestCopiedTasksAreLikeStoredOnes(t *testing.T) {
	for _, c := range []struct {
		name             string
		n, hosts         int
		queued, delivers int64
	}{
		{"fewer than the template", 500, 1, 250, 250},
		{"one host", 4000, 1, 2000, 2000},
		{"many hosts", 4000, 4000, 2000, 2000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			folder := filepath.Join(t.TempDir(), "store")
			err := fillMany(folder, c.n, c.hosts, func(ctx context.Context, e engine.Engine, i int) error {
				if i%2 == 0 {
					return queued(ctx, e)
				}
				return addDelivery(ctx, e, "http://127.1.0.0:1/hook", "127.1.0.0:1")
			})
			if err != nil {
				t.Fatal(err)
			}
			e, err := sqlite.Open(ctx, sqlite.Config{Folder: folder, MaxSize: 1 << 30, Logger: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close(context.Background())
			stats, err := e.Stats(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if stats.Tasks[task.Queued] != c.queued || stats.Tasks[task.Delivering] != c.delivers {
				t.Errorf("the store has %v", stats.Tasks)
			}
			hosts := make(map[string]bool)
			for len(hosts) < max(1, c.hosts/2) {
				reported, err := e.DueHosts(ctx, 1000)
				if err != nil {
					t.Fatal(err)
				}
				for _, h := range reported {
					hosts[h.Host] = true
				}
			}
			for host := range hosts {
				taken, err := e.Take(ctx, host, 1)
				if err != nil || len(taken) != 1 {
					t.Fatalf("taking a delivery of %s: %d, %v", host, len(taken), err)
				}
				rec := taken[0].Record()
				if rec.CallbackHost != host || rec.Callback.URL != "http://"+host+"/hook" {
					t.Errorf("the callback of %s goes to %s", host, rec.Callback.URL)
				}
				known, err := e.Get(ctx, rec.ID)
				if err != nil || known.ID != rec.ID {
					t.Errorf("looking up task %s: %v", rec.ID, err)
				}
				body, err := taken[0].Result(ctx)
				if err != nil {
					t.Fatal(err)
				}
				body.Close()
				if err := taken[0].Done(ctx); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
