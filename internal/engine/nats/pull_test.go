package engine

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// A line is an address behind which a server stands, as far away as is set.
type line struct {
	addr  string
	delay atomic.Int64 // one way, in nanoseconds
}

func newLine(t *testing.T, server string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	l := &line{addr: listener.Addr().String()}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			conn, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			go l.carry(client, conn)
			go l.carry(conn, client)
		}
	}()
	return l
}

// carry writes what it reads when that has come all the way.
func (l *line) carry(from, to net.Conn) {
	type parcel struct {
		data []byte
		due  time.Time
	}
	underway := make(chan parcel, 1<<10)
	go func() {
		defer close(underway)
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if n > 0 {
				underway <- parcel{append([]byte(nil), buf[:n]...), time.Now().Add(time.Duration(l.delay.Load()))}
			}
			if err != nil {
				return
			}
		}
	}()
	defer to.Close()
	for p := range underway {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			from.Close() // ends the reader
			for range underway {
			}
			return
		}
	}
}

// What a server sends when a request is about to end comes when nobody waits for it
// any more. It is given back, and does not have to wait until it would be taken from
// a node that died.
func TestWhatComesAfterItsRequestHasEndedIsGivenBack(t *testing.T) {
	t.Parallel()
	cfg := startServer(t, nil)
	cfg.LeaseTime = 10 * time.Minute
	near := openOn(t, cfg)
	l := newLine(t, strings.TrimPrefix(cfg.URLs[0], "nats://"))
	cfg.URLs = []string{l.addr}
	far := openOn(t, cfg)
	source, err := far.Due(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const wait, tasks = time.Second, 20
	l.delay.Store(int64(700 * time.Millisecond)) // there and back takes longer than answerTime
	recs := make(chan task.Record, tasks)
	go func() {
		for rec := range recs {
			lease, err := near.Claim(context.Background(), rec, func() {})
			if err == nil {
				rec.Result = &task.Result{}
				err = lease.Settle(context.Background(), &rec, nil, false)
			}
			if err != nil {
				t.Error(err)
			}
			time.Sleep(wait / 5)
		}
	}()
	for range tasks {
		recs <- record("c.example:443")
	}
	close(recs)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	came := map[string]bool{}
	for len(came) < tasks && ctx.Err() == nil {
		for d, err := range source.fetch(ctx, tasks, wait) {
			if err != nil {
				t.Fatal(err)
			}
			came[d.Record.ID] = true
		}
	}
	if len(came) < tasks {
		t.Errorf("of %d tasks %d came", tasks, len(came))
	}
}
