package main

import (
	"context"
	"encoding/json"
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
	Folder string
	N      int
	// Leases says that a task begins with its lease; without it, with the callback
	// that is due.
	Leases bool
}

// storing returns how many tasks a second can be stored with an embedded server
// of the gateway's settings, by a program that does nothing else: neither
// requests nor records are made. It is the floor under every gateway that keeps
// its tasks in JetStream.
func storing(n int, leases bool) (float64, error) {
	folder, err := os.MkdirTemp("", "callback-bench-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(folder)
	plan, err := json.Marshal(storePlan{folder, n, leases})
	if err != nil {
		return 0, err
	}
	out, err := self(asStorer, string(plan))
	if err != nil {
		return 0, err
	}
	var rate float64
	_, err = fmt.Sscan(string(out), &rate)
	return rate, err
}

func runAsStorer() bool {
	text := os.Getenv(asStorer)
	if text == "" {
		return false
	}
	var plan storePlan
	rate, err := 0.0, json.Unmarshal([]byte(text), &plan)
	if err == nil {
		rate, err = store(plan)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(rate)
	return true
}

// storer is the bare loop.
type storer struct {
	js       jetstream.JetStream
	consumer jetstream.Consumer
	record   []byte
}

func store(plan storePlan) (float64, error) {
	srv, err := bareServer(plan.Folder, 10*time.Millisecond)
	if err != nil {
		return 0, err
	}
	defer srv.Shutdown()
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	s := &storer{record: []byte(strings.Repeat("x", recordSize))}
	if s.js, err = jetstream.New(nc); err != nil {
		return 0, err
	}
	ctx := context.Background()
	if err := s.open(ctx); err != nil {
		return 0, err
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

// bareServer starts an embedded server of the gateway's settings. It syncs every
// message if interval is 0.
func bareServer(folder string, interval time.Duration) (*server.Server, error) {
	srv, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: folder, NoSigs: true,
		SyncInterval: interval, SyncAlways: interval == 0,
	})
	if err != nil {
		return nil, err
	}
	srv.Start()
	if !srv.ReadyForConnections(time.Minute) {
		srv.Shutdown()
		return nil, fmt.Errorf("the server is not ready")
	}
	return srv, nil
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
	ack, err := s.js.PublishMsg(ctx, &nats.Msg{Subject: "lease." + id, Data: s.record, Header: nats.Header{
		jetstream.ScheduleHeader:            {"@at " + time.Now().Add(30*time.Second).UTC().Format(time.RFC3339Nano)},
		jetstream.ScheduleTargetHeader:      {"due." + id},
		jetstream.ExpectedLastSubjSeqHeader: {"0"},
	}})
	if err != nil {
		return err
	}
	return s.due(ctx, id, ack.Sequence)
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
