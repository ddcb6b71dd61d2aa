package nats

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/caddy-callback/caddy-callback/integration/freeaddr"
	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// cluster is a cluster of JetStream servers. Each account has its own streams.
type cluster struct {
	files   []string
	servers []*server.Server
	ports   []int
}

// startCluster starts servers with a number of accounts.
func startCluster(t testing.TB, servers, accounts int) *cluster {
	t.Helper()
	c := &cluster{servers: make([]*server.Server, servers)}
	var users, routes strings.Builder
	for a := range accounts {
		fmt.Fprintf(&users, "a%d: {jetstream: enabled, users: [{user: a%d, password: x}]}\n", a, a)
	}
	var routePorts []int
	for range servers {
		c.ports = append(c.ports, freeaddr.Port(t))
		routePorts = append(routePorts, freeaddr.Port(t))
		fmt.Fprintf(&routes, "nats://127.0.0.1:%d\n", routePorts[len(routePorts)-1])
	}
	for i := range servers {
		folder := t.TempDir()
		text := fmt.Sprintf("server_name: n%d\nlisten: 127.0.0.1:%d\njetstream {store_dir: %q}\naccounts {%s}\n"+
			"cluster {name: c, listen: 127.0.0.1:%d, routes: [%s]}\n",
			i, c.ports[i], filepath.Join(folder, "js"), users.String(), routePorts[i], routes.String())
		c.files = append(c.files, filepath.Join(folder, "conf"))
		if err := os.WriteFile(c.files[i], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.start(t, i)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.stop(i)
		}
	})
	eventually(t, "JetStream has a leader", func() bool {
		nc, err := nats.Connect(c.urls(0)[0])
		if err != nil {
			return false
		}
		defer nc.Close()
		js, err := nc.JetStream(nats.MaxWait(time.Second))
		if err != nil {
			return false
		}
		_, err = js.AccountInfo()
		return err == nil
	})
	return c
}

func (c *cluster) start(t testing.TB, i int) {
	t.Helper()
	opts, err := server.ProcessConfigFile(c.files[i])
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs = true
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	c.servers[i] = srv
	if !srv.ReadyForConnections(time.Minute) {
		t.Fatal("the server is not ready")
	}
}

func (c *cluster) stop(i int) {
	c.servers[i].Shutdown()
	c.servers[i].WaitForShutdown()
}

// urls returns the URLs of all servers for an account.
func (c *cluster) urls(account int) (urls []string) {
	for _, port := range c.ports {
		urls = append(urls, fmt.Sprintf("nats://a%d:x@127.0.0.1:%d", account, port))
	}
	return urls
}

// leader returns the index of the server that leads the task stream of account 0.
func (c *cluster) leader() int {
	for i, srv := range c.servers {
		if srv.JetStreamIsStreamLeader("a0", taskStream) {
			return i
		}
	}
	return rand.IntN(len(c.servers))
}

// Servers restart one after the other while two gateways process tasks. Each accepted
// task gets its callback with one verdict.
func TestTasksSurviveServerRestarts(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 3, 1)
	cfg := Config{URLs: c.urls(0), Replicas: 3, LeaseTime: 5 * time.Second}
	gateways := []*Engine{open(t, cfg), open(t, cfg)}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	const writers, each = 8, 60
	var accepted, delivered sync.Map
	var working sync.WaitGroup
	for w := range writers {
		working.Go(func() {
			for n := range each {
				produce(ctx, t, gateways[(w+n)%2], &accepted)
			}
		})
	}
	consuming, stop := context.WithCancel(ctx)
	var consumers sync.WaitGroup
	for _, g := range gateways {
		consumers.Go(func() { consume(consuming, t, g, &delivered) })
	}
	for i := range 3 {
		victim := c.leader()
		c.stop(victim)
		eventually(t, "the cluster stores again", func() bool { return gateways[i%2].Ready() == nil })
		c.start(t, victim)
		eventually(t, "all replicas are current", c.isCurrent)
	}
	working.Wait()
	eventually(t, "all are delivered", func() bool {
		missing := 0
		accepted.Range(func(id, _ any) bool {
			if _, ok := delivered.Load(id); !ok {
				missing++
			}
			return true
		})
		return missing == 0
	})
	stop()
	consumers.Wait()
	accepted.Range(func(id, verdict any) bool {
		if got, _ := delivered.Load(id); verdict != "" && got != verdict {
			t.Errorf("task %s was settled as %s and delivered as %s", id, verdict, got)
		}
		return true
	})
}

func (c *cluster) isCurrent() bool {
	for _, srv := range c.servers {
		if !srv.JetStreamIsStreamCurrent("a0", taskStream) {
			return false
		}
	}
	return true
}

// produce accepts and settles a task. It records the stored verdict, or "" if the
// outcome is unknown.
func produce(ctx context.Context, t *testing.T, e *Engine, accepted *sync.Map) {
	rec := newTask()
	rec.Queue, rec.Request = "", nil
	l, err := e.Claim(ctx, rec)
	if err != nil {
		<-time.After(20 * time.Millisecond)
		return
	}
	accepted.Store(rec.ID, "")
	for ctx.Err() == nil {
		err := settle(t, l, rec, "result")
		if err == nil {
			accepted.Store(rec.ID, string(rec.Status))
			return
		}
		if !isUnavailable(err) {
			return // another gateway decided the verdict
		}
	}
}

// consume delivers due callbacks of a gateway and records their verdicts.
func consume(ctx context.Context, t *testing.T, e *Engine, delivered *sync.Map) {
	for ctx.Err() == nil {
		taken, err := e.Take(ctx, receiver, 8)
		if err != nil || len(taken) == 0 {
			<-time.After(5 * time.Millisecond)
			continue
		}
		for _, d := range taken {
			rec := d.Record()
			if other, ok := delivered.LoadOrStore(rec.ID, string(rec.Status)); ok && other != string(rec.Status) {
				t.Errorf("task %s has the verdicts %s and %s", rec.ID, other, rec.Status)
			}
			_ = d.Done(ctx) // after an error the delivery is repeated
		}
	}
}

func isUnavailable(err error) bool { return errors.Is(err, engine.ErrUnavailable) }
