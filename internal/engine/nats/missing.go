package engine

import (
	"context"
	"errors"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// makeMissing makes streams anew that were deleted in a cluster, or went with its
// disks: without them there is nothing to wait for. A cluster that is merely away
// does not say that it has no such stream.
func (e *Engine) makeMissing(ctx context.Context, out *outage) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	k := e.link()
	var missing []string
	for _, name := range allStreams {
		_, err := k.js.Stream(ctx, name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			missing = append(missing, name)
		} else if err != nil {
			return
		}
	}
	if len(missing) == 0 {
		return
	}
	// What is open knows the streams by their names.
	err := e.openStreams(ctx, &link{nc: k.nc, js: k.js})
	if err == nil && slices.Contains(missing, liveStream) {
		k.found.Store(0)
		e.mu.Lock()
		schedules := e.schedules
		e.mu.Unlock()
		err = e.SetSchedules(ctx, schedules)
	}
	if err == nil {
		e.log.Error("streams were gone with all that was in them; they were made anew", zap.Strings("streams", missing))
	} else if cause := err.Error(); cause != out.cause {
		out.cause = cause
		e.log.Error("streams are gone, and cannot be made anew", zap.Strings("streams", missing), zap.Error(err))
	}
}
