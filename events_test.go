package callback

import (
	"testing"

	"go.uber.org/zap"
)

func TestQueuedEventsAreBounded(t *testing.T) {
	t.Parallel()
	var n eventQueue
	for range maxEvents + 5 {
		n.add("callback_dead", zap.NewNop(), func() map[string]any { return nil })
	}
	if len(n.waiting) != maxEvents || n.dropped != 5 || n.emitting != nil {
		t.Errorf("%d events wait, %d were dropped, emitting: %v", len(n.waiting), n.dropped, n.emitting != nil)
	}
	// A generation that never joined can leave.
	<-n.leave(new(App))
	<-n.idle()
}
