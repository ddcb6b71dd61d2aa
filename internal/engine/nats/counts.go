package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Counts returns how many tasks stand in each state. It asks the server, in a
// few milliseconds however many there are. What moves meanwhile may be counted
// twice or not at all, and a queue's task that waits for its next run counts as
// delivering: it waits in the same place.
func (e *Engine) Counts(ctx context.Context) (map[task.State]uint64, error) {
	counts := make(map[task.State]uint64)
	// What has a consumer is counted by it.
	consumers := e.link().live.ListConsumers(ctx)
	for info := range consumers.Info() {
		state := task.Delivering
		if strings.HasPrefix(info.Config.FilterSubject, queuedSubject) {
			state = task.Queued
		}
		counts[state] += info.NumPending + uint64(info.NumAckPending)
	}
	if err := consumers.Err(); err != nil {
		return nil, fmt.Errorf("counting tasks: %w", err)
	}
	for _, c := range []struct {
		state  task.State
		stream jetstream.Stream
		filter string
	}{
		{task.Running, e.link().live, leaseSubject + "*"},
		{task.Delivering, e.link().live, retrySubject + "*"},
		{task.Done, e.link().ended, doneSubject + "*"},
		{task.Dead, e.link().dead, deadSubject + "*"},
	} {
		n, err := count(ctx, c.stream, c.filter)
		if err != nil {
			return nil, fmt.Errorf("counting tasks: %w", err)
		}
		counts[c.state] += n
	}
	return counts, nil
}

// QueueLengths returns how many tasks wait in each queue.
func (e *Engine) QueueLengths(ctx context.Context) (map[string]uint64, error) {
	lengths := make(map[string]uint64)
	consumers := e.link().live.ListConsumers(ctx)
	for info := range consumers.Info() {
		if name, ok := strings.CutPrefix(info.Name, queueConsumer); ok {
			lengths[name] = info.NumPending + uint64(info.NumAckPending)
		}
	}
	if err := consumers.Err(); err != nil {
		return nil, fmt.Errorf("counting the tasks of queues: %w", err)
	}
	return lengths, nil
}

// DueDeliveries returns how many deliveries are due: those that are being
// attempted and those that wait for their turn, but not those whose next attempt
// is set for later.
func (e *Engine) DueDeliveries(ctx context.Context) (due uint64, _ error) {
	consumers := e.link().live.ListConsumers(ctx)
	for info := range consumers.Info() {
		if filter := info.Config.FilterSubject; strings.HasPrefix(filter, dueSubject) || strings.HasPrefix(filter, heldSubject) {
			due += info.NumPending + uint64(info.NumAckPending)
		}
	}
	if err := consumers.Err(); err != nil {
		return 0, fmt.Errorf("counting what is due: %w", err)
	}
	return due, nil
}

// count returns how many messages of a stream match a filter. The server tells
// it to a new consumer; to list them would take seconds where there are many.
func count(ctx context.Context, stream jetstream.Stream, filter string) (uint64, error) {
	for {
		consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
			FilterSubject:     filter,
			AckPolicy:         jetstream.AckExplicitPolicy,
			MemoryStorage:     true,
			InactiveThreshold: countThreshold,
		})
		var taken *jetstream.APIError
		switch {
		case err == nil:
			info := consumer.CachedInfo()
			return info.NumPending, stream.DeleteConsumer(ctx, info.Name)
		case !errors.As(err, &taken) || taken.ErrorCode != consumerNotUnique:
			return 0, err
		}
		// Somebody else is counting; a work queue has one consumer for a filter.
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(countPause):
		}
	}
}

const (
	// countThreshold is when the server removes a consumer that we did not.
	countThreshold = 5 * time.Second
	countPause     = 5 * time.Millisecond
	// consumerNotUnique is the server's code for a second consumer of a filter;
	// the client library has no name for it.
	consumerNotUnique jetstream.ErrorCode = 10100
)
