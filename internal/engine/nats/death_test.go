package nats

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

const receiver = "c.example:443"

// newTask returns the record of a queued task with a callback.
func newTask() *task.Record {
	return &task.Record{
		Task: task.Task{
			ID: uuid.Must(uuid.NewV7()).String(), Queue: "q", CreatedAt: time.Now().UTC(), CallbackHost: receiver,
		},
		Request:  &task.Request{Method: "POST", URI: "/"},
		Callback: &task.Callback{URL: "https://" + receiver + "/"},
	}
}

func enqueue(t *testing.T, e *Engine, rec *task.Record, body string) {
	t.Helper()
	if _, _, err := e.Enqueue(t.Context(), rec, strings.NewReader(body), engine.EnqueueOptions{}); err != nil {
		t.Fatal(err)
	}
}

func claim(t *testing.T, e *Engine) (*task.Record, engine.Lease) {
	t.Helper()
	rec := newTask()
	rec.Queue, rec.Request = "", nil
	l, err := e.Claim(t.Context(), rec)
	if err != nil {
		t.Fatal(err)
	}
	return rec, l
}

// settle settles a task as COMPLETE.
func settle(t *testing.T, l engine.Lease, rec *task.Record, result string) error {
	t.Helper()
	rec.Status, rec.FinishedAt, rec.Result = task.Complete, time.Now().UTC(), &task.Result{Size: int64(len(result))}
	return l.Settle(t.Context(), rec, strings.NewReader(result))
}

// openWithoutHeartbeats opens an engine that stores no heartbeat for an hour, like a
// process after SIGSTOP.
func openWithoutHeartbeats(t *testing.T, cfg Config) *Engine {
	t.Helper()
	cfg.LeaseTime = 3 * time.Hour
	return open(t, cfg)
}

// take waits for a delivery and takes it.
func take(t *testing.T, e *Engine) engine.Delivery {
	t.Helper()
	var d engine.Delivery
	eventually(t, "a delivery is due", func() bool {
		got, err := e.Take(t.Context(), receiver, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) > 0 {
			d = got[0]
		}
		return len(got) > 0
	})
	return d
}

func TestPausedHolderCannotSettle(t *testing.T) {
	t.Parallel()
	cfg := Config{URLs: []string{startServer(t, t.TempDir(), nil).ClientURL()}}
	rec, l := claim(t, openWithoutHeartbeats(t, cfg))
	lost := make(chan struct{})
	l.OnLost(func() { close(lost) })
	d := take(t, open(t, cfg))
	if got := d.Record(); got.ID != rec.ID || got.Status != task.Failed || got.Error != task.ErrorHolderDied {
		t.Errorf("the delivery is %+v", got)
	}
	if err := settle(t, l, rec, "late"); !errors.Is(err, engine.ErrLost) {
		t.Errorf("settling returned %v", err)
	}
	select {
	case <-lost:
	case <-time.After(time.Minute):
		t.Error("OnLost was not called")
	}
}

// If a gateway was paused, two gateways may attempt a delivery. Its outcome is stored
// once.
func TestPausedGatewayLosesItsDeliveries(t *testing.T) {
	t.Parallel()
	cfg := Config{URLs: []string{startServer(t, t.TempDir(), nil).ClientURL()}}
	paused := openWithoutHeartbeats(t, cfg)
	rec, l := claim(t, paused)
	if err := settle(t, l, rec, "result"); err != nil {
		t.Fatal(err)
	}
	late := take(t, paused)
	d := take(t, open(t, cfg))
	if err := d.Done(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := late.Retry(t.Context(), time.Now()); !errors.Is(err, engine.ErrLost) {
		t.Errorf("the paused gateway's retry returned %v", err)
	}
}

// slowAddress returns the address of a proxy that forwards at most perSecond bytes a
// second to a server.
func slowAddress(t *testing.T, server string, perSecond int) string {
	t.Helper()
	return listen(t, func(client net.Conn) {
		defer client.Close()
		_ = client.(*net.TCPConn).SetReadBuffer(16 << 10)
		conn, err := net.Dial("tcp", server)
		if err != nil {
			return
		}
		defer conn.Close()
		go func() { _, _ = io.Copy(client, conn) }()
		const perTick = 20
		tick := time.NewTicker(time.Second / perTick)
		defer tick.Stop()
		for range tick.C {
			if _, err := io.CopyN(conn, client, int64(perSecond/perTick)); err != nil {
				return
			}
		}
	})
}

// Storing a large result may take longer than a step timeout and a lease time. The
// result is stored, and the lease does not expire.
func TestLargeResultOverSlowConnection(t *testing.T) {
	t.Parallel()
	const perSecond, size = 512 << 10, 5 << 20 // ten seconds
	srv := startServer(t, t.TempDir(), nil)
	e := open(t, Config{URLs: []string{slowAddress(t, srv.Addr().String(), perSecond)}, LeaseTime: 4 * time.Second})
	open(t, Config{URLs: []string{srv.ClientURL()}, LeaseTime: 4 * time.Second}) // a second gateway, which would expire the lease
	rec, l := claim(t, e)
	body, start := strings.Repeat("0123456789abcdef", size/16), time.Now()
	if err := settle(t, l, rec, body); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < stepTimeout {
		t.Fatalf("the connection is not slow: settling took %v", took)
	}
	d := take(t, e)
	result, err := d.Result(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer result.Close()
	if got, err := io.ReadAll(result); err != nil || !bytes.Equal(got, []byte(body)) {
		t.Errorf("the result has %d bytes, %v", len(got), err)
	}
}
