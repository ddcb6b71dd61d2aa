package engine

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Were it stored anew by each start, it would not be the oldest for long.
func TestTheAnchorIsOlderThanEveryTask(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	first := func(e *Engine) *jetstream.RawStreamMsg {
		t.Helper()
		msg, err := e.link().live.GetMsg(t.Context(), 1, jetstream.WithGetMsgSubject(">"))
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	e := open(t, store, time.Minute)
	if _, err := e.link().nc.Request(queuedSubject+"q.a", nil, time.Minute); err != nil {
		t.Fatal(err)
	}
	if msg := first(e); msg.Subject != anchorSubject {
		t.Errorf("the oldest is %s", msg.Subject)
	}
	e.Close()
	e = open(t, store, time.Minute)
	defer e.Close()
	if msg := first(e); msg.Subject != anchorSubject || msg.Sequence != 1 {
		t.Errorf("the oldest is %s, at %d", msg.Subject, msg.Sequence)
	}
}
