package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// asStorer makes this program a bare loop that stores what tasks need stored: a
// process of its own, as the gateway is.
const asStorer = "CALLBACK_BENCH_AS_STORER"

type storePlan struct {
	N int
	// Leases says that a task begins with its lease; without it, with the callback
	// that is due.
	Leases bool
	// Scheduled says that leases are stored and nothing after them, and that the
	// memory is asked for.
	Scheduled bool
}

// scheduling returns what the bare program has resident, in MB, when n messages
// wait for their time.
func scheduling(n int) (float64, error) {
	return figureOf(asStorer, storePlan{N: n, Scheduled: true})
}

// storing returns how many tasks a second can be stored with an embedded server
// of the gateway's settings, by a program that does nothing else: neither
// requests nor records are made. It is the floor under every gateway that keeps
// its tasks in JetStream.
func storing(n int, leases bool) (float64, error) {
	return figureOf(asStorer, storePlan{N: n, Leases: leases})
}

// storer is the bare loop.
type storer struct {
	js       jetstream.JetStream
	consumer jetstream.Consumer
	record   []byte
}

func store(plan storePlan) (float64, error) {
	js, stop, err := bareServer(10 * time.Millisecond)
	if err != nil {
		return 0, err
	}
	defer stop()
	s := &storer{js: js, record: []byte(strings.Repeat("x", recordSize))}
	ctx := context.Background()
	if err := s.open(ctx); err != nil {
		return 0, err
	}
	if plan.Scheduled {
		err := parallel(clients, plan.N, func(int) error {
			_, err := s.lease(ctx, uuid.NewString(), time.Hour)
			return err
		})
		if err != nil {
			return 0, err
		}
		time.Sleep(calm)
		return memoryOf(os.Getpid())
	}
	if !plan.Leases {
		if err := parallel(2*clients, plan.N, func(int) error { return s.due(ctx, uuid.NewString(), 0) }); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	drained := make(chan error, 1)
	go func() { drained <- s.drain(ctx, plan.N) }()
	if plan.Leases {
		if err := parallel(clients, plan.N, func(int) error { return s.task(ctx) }); err != nil {
			return 0, err
		}
	}
	err = <-drained
	return float64(plan.N) / time.Since(began).Seconds(), err
}

// recordSize is what a task's record takes with a result of 31 bytes.
const recordSize = 600

// bareServer starts an embedded server of the gateway's settings, and connects to
// it. It syncs every message if interval is 0.
func bareServer(interval time.Duration) (_ jetstream.JetStream, stop func(), err error) {
	folder, err := os.MkdirTemp("", "callback-bench-")
	if err != nil {
		return nil, nil, err
	}
	var srv *server.Server
	var nc *nats.Conn
	stop = func() {
		if nc != nil {
			nc.Close()
		}
		if srv != nil {
			srv.Shutdown()
			srv.WaitForShutdown()
		}
		os.RemoveAll(folder)
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	if srv, err = server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: folder, NoSigs: true,
		SyncInterval: interval, SyncAlways: interval == 0,
	}); err != nil {
		return nil, nil, err
	}
	srv.Start()
	if !srv.ReadyForConnections(time.Minute) {
		return nil, nil, errors.New("the server is not ready")
	}
	if nc, err = nats.Connect("", nats.InProcessServer(srv)); err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(nc)
	return js, stop, err
}

func (s *storer) open(ctx context.Context) error {
	live, err := s.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "LIVE", Subjects: []string{"lease.*", "due.*"}, Retention: jetstream.WorkQueuePolicy,
		MaxMsgsPerSubject: 1, AllowMsgSchedules: true, AllowDirect: true,
	})
	if err != nil {
		return err
	}
	_, err = s.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: "ENDED", Subjects: []string{"done.*"}, MaxMsgsPerSubject: 1, MaxMsgs: 100_000, AllowDirect: true,
	})
	if err != nil {
		return err
	}
	s.consumer, err = live.CreateConsumer(ctx, jetstream.ConsumerConfig{
		FilterSubject: "due.*", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: -1, MemoryStorage: true,
	})
	return err
}

// task stores a lease, and then what is due in its place.
func (s *storer) task(ctx context.Context) error {
	id := uuid.NewString()
	seq, err := s.lease(ctx, id, 30*time.Second)
	if err != nil {
		return err
	}
	return s.due(ctx, id, seq)
}

// lease stores what will be due after some time, and returns its sequence.
func (s *storer) lease(ctx context.Context, id string, after time.Duration) (uint64, error) {
	ack, err := s.js.PublishMsg(ctx, &nats.Msg{Subject: "lease." + id, Data: s.record, Header: nats.Header{
		jetstream.ScheduleHeader:            {"@at " + time.Now().Add(after).UTC().Format(time.RFC3339Nano)},
		jetstream.ScheduleTargetHeader:      {"due." + id},
		jetstream.ExpectedLastSubjSeqHeader: {"0"},
	}})
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// due stores a callback that is due; lease is the sequence of what it replaces,
// if it replaces anything.
func (s *storer) due(ctx context.Context, id string, lease uint64) error {
	msg := &nats.Msg{Subject: "due." + id, Data: s.record}
	if lease > 0 {
		msg.Header = nats.Header{
			jetstream.ExpectedLastSubjSeqHeader:     {fmt.Sprint(lease)},
			jetstream.ExpectedLastSubjSeqSubjHeader: {"lease." + id},
			"Nats-Scheduler":                        {"lease." + id},
			"Nats-Schedule-Next":                    {"purge"},
		}
	}
	_, err := s.js.PublishMsg(ctx, msg)
	return err
}

// drain takes n callbacks that are due, and stores each as done.
func (s *storer) drain(ctx context.Context, n int) error {
	due := make(chan jetstream.Msg, perHost)
	fetched := make(chan error, 1)
	go func() {
		defer close(due)
		fetched <- s.fetch(n, due)
	}()
	err := parallel(perHost, perHost, func(int) error {
		for msg := range due {
			if _, err := s.js.Publish(ctx, strings.Replace(msg.Subject(), "due", "done", 1), msg.Data()); err != nil {
				return err
			}
			if err := msg.Ack(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return <-fetched
}

// fetch takes n callbacks that are due. It gives up when none come.
func (s *storer) fetch(n int, due chan<- jetstream.Msg) error {
	for n > 0 {
		batch, err := s.consumer.Fetch(min(n, perHost), jetstream.FetchMaxWait(time.Minute))
		if err != nil {
			return err
		}
		got := 0
		for msg := range batch.Messages() {
			due <- msg
			got++
		}
		if err := batch.Error(); err != nil {
			return err
		}
		if got == 0 {
			return fmt.Errorf("%d callbacks that are due do not come", n)
		}
		n -= got
	}
	return nil
}
