package nats

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// administer connects to a server as an operator does.
func administer(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url)
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

// operators returns a configuration of the task stream that an operator may have
// created.
func operators() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: taskStream, Subjects: []string{taskSubject + "*"}, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew,
	}
}

func TestOpenNamesFieldOfIncompatibleStream(t *testing.T) {
	t.Parallel()
	for want, spoil := range map[string]func(*jetstream.StreamConfig){
		"retention WorkQueue":    func(s *jetstream.StreamConfig) { s.Retention = jetstream.WorkQueuePolicy },
		"storage Memory":         func(s *jetstream.StreamConfig) { s.Storage = jetstream.MemoryStorage },
		"discard DiscardOld":     func(s *jetstream.StreamConfig) { s.Discard = jetstream.DiscardOld },
		"max_msgs_per_subject 2": func(s *jetstream.StreamConfig) { s.MaxMsgsPerSubject = 2 },
		"max_age 1h0m0s":         func(s *jetstream.StreamConfig) { s.MaxAge = time.Hour },
		"mirror true": func(s *jetstream.StreamConfig) {
			s.Subjects, s.Mirror = nil, &jetstream.StreamSource{Name: "ORDERS"}
		},
		"no_ack true":      func(s *jetstream.StreamConfig) { s.NoAck = true },
		"deny_delete true": func(s *jetstream.StreamConfig) { s.DenyDelete = true },
		"deny_purge true":  func(s *jetstream.StreamConfig) { s.DenyPurge = true },
		"max_msg_size 100": func(s *jetstream.StreamConfig) { s.MaxMsgSize = 100 },
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			url := startServer(t, t.TempDir(), nil).ClientURL()
			js := administer(t, url)
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders"}}); err != nil {
				t.Fatal(err)
			}
			cfg := operators()
			spoil(&cfg)
			if _, err := js.CreateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			e, err := Open(t.Context(), Config{URLs: []string{url}, Replicas: 3, Logger: zap.NewNop()})
			if err == nil {
				e.(*Engine).kill()
				t.Fatal("Open accepted the stream")
			}
			if !strings.Contains(err.Error(), taskStream+": it exists with "+want) || !errors.Is(err, engine.ErrUnavailable) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestOpenUsesOperatorsStream(t *testing.T) {
	t.Parallel()
	url := startServer(t, t.TempDir(), nil).ClientURL()
	js := administer(t, url)
	for _, cfg := range []jetstream.StreamConfig{operators(), bodyConfig()} {
		cfg.Discard = jetstream.DiscardNew
		cfg.Metadata = map[string]string{"owner": "operations"}
		if _, err := js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	// A single server refuses to create streams with three replicas, so these existed
	// before.
	e := open(t, Config{URLs: []string{url}, Replicas: 3})
	enqueue(t, e, newTask(), strings.Repeat("x", 2*inlineLimit))
	for _, name := range []string{taskStream, bodyStream} {
		stream, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		have := stream.CachedInfo().Config
		if have.Replicas != 1 || have.Metadata["owner"] != "operations" || !have.AllowMsgTTL || have.AllowDirect {
			t.Errorf("%s has become %+v", name, have)
		}
	}
}

func TestTokensAreUnique(t *testing.T) {
	t.Parallel()
	seen := make(map[string]string)
	for _, s := range []string{
		"", "-", "%", "a.b:80", "a_b:80", "a-b:80", "a%5Fb:80", "[2001:db8::1]:443", "a b", "a*b", "a>b", "A.b:80", "é",
		strings.Repeat("a", 300), strings.Repeat("a", 301),
	} {
		got := token(s)
		if other, ok := seen[got]; ok {
			t.Errorf("%q and %q share the token %s", s, other, got)
		}
		seen[got] = s
		if strings.ContainsAny(got, ".*> \t") || got == "" || len(got) > maxToken {
			t.Errorf("%q has the token %q", s, got)
		}
	}
}
