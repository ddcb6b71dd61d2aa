package callback

import (
	"testing"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestEventsThatNobodyTakesDoNotFillTheMemory(t *testing.T) {
	t.Parallel()
	var n announcer
	for range maxEvents + 5 {
		n.announce(new(task.Record), deliver.Dead, zap.NewNop())
	}
	if len(n.waiting) != maxEvents || n.dropped != 5 || n.telling != nil {
		t.Errorf("%d events wait, %d were dropped, and somebody is told: %v", len(n.waiting), n.dropped, n.telling != nil)
	}
	// A generation that never came can leave.
	<-n.leave(new(App))
	<-n.idle()
}
