package callback

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// recordTimeout bounds how long a client's response is held back by an engine
// that does not answer. The verdict is tried again for as long as the lease
// stands.
const recordTimeout = 5 * time.Second

// endLease makes the step that ends a lease. If the engine is away it returns, and
// the step is repeated until it is stored, somebody else has decided, or the process
// exits: a lease that nobody ends lasts as long as the process.
func (s *sharedStore) endLease(log *zap.Logger, id string, step func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), recordTimeout)
	defer cancel()
	err := step(ctx)
	if err == nil || errors.Is(err, engine.ErrLost) {
		return
	}
	log = log.With(zap.String("task_id", id))
	if !passes(err) {
		log.Error("lease not ended", zap.Error(err))
		return
	}
	log.Error("lease not ended; trying again", zap.Error(err))
	s.use()
	go func() {
		defer s.leave()
		s.endLeaseLater(log, step)
	}()
}

// passes says whether an error of the engine may be gone the next time.
func passes(err error) bool {
	return errors.Is(err, engine.ErrUnavailable) || errors.Is(err, engine.ErrFull)
}

func (s *sharedStore) endLeaseLater(log *zap.Logger, step func(context.Context) error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-s.givingBack.Done():
		case <-tick.C:
		}
		err := step(s.quit)
		if err == nil || errors.Is(err, engine.ErrLost) {
			return
		}
		if !passes(err) || s.givingBack.Err() != nil { // or quit: the process exits
			// The next process that opens the store ends the lease.
			log.Error("lease not ended", zap.Error(err))
			return
		}
	}
}
