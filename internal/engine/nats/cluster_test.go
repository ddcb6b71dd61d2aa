package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// administer connects to somebody else's JetStream as its operator.
func administer(t *testing.T, cfg Config) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(cfg.URLs[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// made are the three streams as an operator may make them.
func made(stream string) jetstream.StreamConfig {
	return map[string]jetstream.StreamConfig{
		liveStream: {
			Name: liveStream, Subjects: []string{queuedSubject + "*.*"}, MaxMsgsPerSubject: 1,
			Retention: jetstream.WorkQueuePolicy, AllowMsgSchedules: true,
		},
		endedStream: {Name: endedStream, Subjects: []string{doneSubject + "*"}, MaxMsgsPerSubject: 1},
		deadStream:  {Name: deadStream, Subjects: []string{deadSubject + "*"}, MaxMsgsPerSubject: 1},
	}[stream]
}

func TestAStreamThatCannotServeIsRefusedByTheNameOfTheField(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]struct {
		stream string
		spoil  func(*jetstream.StreamConfig)
	}{
		"retention Limits":          {liveStream, func(s *jetstream.StreamConfig) { s.Retention = jetstream.LimitsPolicy }},
		"storage Memory":            {deadStream, func(s *jetstream.StreamConfig) { s.Storage = jetstream.MemoryStorage }},
		"discard DiscardNew":        {endedStream, func(s *jetstream.StreamConfig) { s.Discard = jetstream.DiscardNew }},
		"max_msgs_per_subject 2":    {endedStream, func(s *jetstream.StreamConfig) { s.MaxMsgsPerSubject = 2 }},
		"allow_msg_schedules false": {liveStream, func(s *jetstream.StreamConfig) { s.AllowMsgSchedules = false }},
		"sealed true":               {deadStream, func(s *jetstream.StreamConfig) { s.Sealed = true }},
		"mirror true": {deadStream, func(s *jetstream.StreamConfig) {
			s.Subjects, s.Mirror = nil, &jetstream.StreamSource{Name: "ORDERS"}
		}},
		"no_ack true":      {liveStream, func(s *jetstream.StreamConfig) { s.NoAck = true }},
		"deny_delete true": {deadStream, func(s *jetstream.StreamConfig) { s.DenyDelete = true }},
		"deny_purge true":  {deadStream, func(s *jetstream.StreamConfig) { s.DenyPurge = true }},
		"max_msg_size 100": {liveStream, func(s *jetstream.StreamConfig) { s.MaxMsgSize = 100 }},
		"max_bytes 1000":   {liveStream, func(s *jetstream.StreamConfig) { s.MaxBytes = 1000 }},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			cfg := startServer(t, nil)
			js := administer(t, cfg)
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}); err != nil {
				t.Fatal(err)
			}
			s := made(c.stream)
			c.spoil(&s)
			sealed := s.Sealed
			s.Sealed = false
			if _, err := js.CreateStream(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if s.Sealed = sealed; sealed {
				if _, err := js.UpdateStream(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			e, err := Open(t.Context(), cfg)
			if err == nil {
				e.Close()
				t.Fatal("the stream was taken")
			}
			if text := err.Error(); !strings.Contains(text, c.stream+": it exists with "+want) || IsAway(err) {
				t.Errorf("it says %q", text)
			}
		})
	}
}

func TestTheStreamsOfAnOperatorAreUsedAsTheyAre(t *testing.T) {
	t.Parallel()
	cfg := startServer(t, nil)
	cfg.Replicas = 3 // of those that are created; a server alone would refuse
	js := administer(t, cfg)
	for _, name := range []string{liveStream, endedStream, deadStream} {
		s := made(name)
		s.Metadata = map[string]string{"owner": "operations"}
		if _, err := js.CreateStream(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	blobs := jetstream.ObjectStoreConfig{Bucket: blobBucket, Description: "theirs"}
	if _, err := js.CreateObjectStore(t.Context(), blobs); err != nil {
		t.Fatal(err)
	}
	cfg.Retention = time.Minute
	e := openAt(t, cfg)
	rec := queued("c.example:443")
	enqueue(t, e, &rec, large)
	for _, name := range []string{liveStream, endedStream, deadStream, "OBJ_" + blobBucket} {
		stream, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		have := stream.CachedInfo().Config
		isBlobs := strings.HasPrefix(name, "OBJ_")
		if have.Replicas != 1 || !isBlobs && have.Metadata["owner"] != "operations" || isBlobs && have.Description != "theirs" {
			t.Errorf("%s has become %+v", name, have)
		}
		if name == endedStream && have.MaxAge != time.Minute {
			t.Errorf("%s keeps for %v", name, have.MaxAge)
		}
	}
}
