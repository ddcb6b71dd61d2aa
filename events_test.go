package callback

import (
	"testing"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestQueuedEventsAreBounded(t *testing.T) {
	t.Parallel()
	var n eventQueue
	for range maxEvents + 5 {
		n.add(new(task.Record), deliver.Dead, zap.NewNop())
	}
	if len(n.waiting) != maxEvents || n.dropped != 5 || n.emitting != nil {
		t.Errorf("%d events wait, %d were dropped, emitting: %v", len(n.waiting), n.dropped, n.emitting != nil)
	}
	// A generation that never joined can leave.
	<-n.leave(new(App))
	<-n.idle()
}
