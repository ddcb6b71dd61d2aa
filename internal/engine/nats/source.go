package engine

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A Source hands out deliveries whose turn has come, in order of arrival, each
// to one node at a time.
type Source struct {
	engine *Engine
	name   string
	filter string

	mu   sync.Mutex // held while the consumer is opened
	link *link      // over which that was
}

// Due returns the source of the deliveries to attempt now.
func (e *Engine) Due(ctx context.Context) (*Source, error) {
	return e.source(ctx, "due", dueSubject+"*.*")
}

// Lane returns the source of the deliveries that wait for one host's turn. A
// lane keeps a slow or flooded host from standing before the others in the
// order of arrival.
func (e *Engine) Lane(ctx context.Context, host string) (*Source, error) {
	return e.laneOf(ctx, hostToken(host))
}

func (e *Engine) laneOf(ctx context.Context, token string) (*Source, error) {
	return e.source(ctx, lanePrefix+token, heldSubject+token+".*")
}

// lanePrefix begins the name of a lane's consumer; the host's token ends it.
const lanePrefix = "lane-"

func (e *Engine) source(ctx context.Context, name, filter string) (*Source, error) {
	s := &Source{engine: e, name: name, filter: filter}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// opened returns the link over which the consumer was opened. It is opened anew if
// the engine was.
func (s *Source) opened(ctx context.Context) (*link, error) {
	s.mu.Lock()
	k := s.link
	s.mu.Unlock()
	if k == s.engine.link() {
		return k, nil
	}
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link, nil
}

// open creates the consumer if it is not there.
func (s *Source) open(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.engine.link()
	_, err := k.live.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:       s.name,
		FilterSubject: s.filter,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       s.engine.handTime(),
		MaxAckPending: -1, // bounded by what the nodes ask for
		// The embedded server is alone with its store: what was in the hands of a
		// process that is gone should come again at once, not when its time is up.
		// A consumer kept in memory forgets.
		MemoryStorage: !s.engine.remote(),
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s.engine.health.failed(liveStorage, err) // or nobody would see to it before the next request
	}
	if err != nil {
		return fmt.Errorf("opening the consumer %s: %w", s.name, err)
	}
	s.link = k
	return nil
}

// fetchWait is how long one request for deliveries waits for the first.
const fetchWait = 10 * time.Second

// Fetch yields up to n deliveries as they come, and ends when it has n, when
// none came for about ten seconds, or when ctx ends. Every delivery must be
// finished with Done, Dead, Retry, Hold or Release.
func (s *Source) Fetch(ctx context.Context, n int) iter.Seq2[*Delivery, error] {
	return s.fetch(ctx, n, fetchWait)
}

func (s *Source) fetch(ctx context.Context, n int, wait time.Duration) iter.Seq2[*Delivery, error] {
	return func(yield func(*Delivery, error) bool) {
		k, err := s.opened(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		ctx, end := k.within(ctx)
		defer end()
		p, err := s.engine.pull(k, s.name, n, wait)
		if err == nil {
			for msg, failed := range p.messages(ctx, wait) {
				if failed != nil {
					err = failed
					break
				}
				if d := s.engine.take(ctx, k, msg); d != nil && !yield(d, nil) {
					return
				}
			}
		}
		switch {
		case err == nil, ctx.Err() != nil:
		case errors.Is(err, errNoConsumer):
			// Another node closed the lane while this one still uses it.
			if err := s.open(ctx); err != nil {
				yield(nil, err)
			}
		default:
			yield(nil, fmt.Errorf("fetching from %s: %w", s.name, err))
		}
	}
}

// Close removes the source if nothing stands in it, and says whether it did. The
// stream is asked, not the consumer: that one hears of a new message later.
func (s *Source) Close(ctx context.Context) (bool, error) {
	_, err := s.engine.link().live.GetMsg(ctx, 1, jetstream.WithGetMsgSubject(s.filter))
	if err == nil {
		return false, nil
	}
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		err = s.engine.link().live.DeleteConsumer(ctx, s.name)
	}
	if err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return false, fmt.Errorf("closing the consumer %s: %w", s.name, err)
	}
	return true, nil
}
