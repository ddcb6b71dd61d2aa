package engine

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The fault suite sets clocks; this is about when there is something to wait for.
func TestTheServersClockIsWoundWhileSomethingWaitsForItsTime(t *testing.T) {
	t.Parallel()
	e := open(t, t.TempDir(), time.Minute)
	defer e.Close()
	wound := func() bool {
		t.Helper()
		if err := e.wind(t.Context(), e.link()); err != nil {
			t.Fatal(err)
		}
		info, err := e.link().live.Info(t.Context(), jetstream.WithSubjectFilter(clockSubject))
		if err != nil {
			t.Fatal(err)
		}
		return len(info.State.Subjects) > 0
	}
	if wound() {
		t.Error("an engine in which nothing waits stores something")
	}
	rec := record("c.example:443")
	settle(t, claim(t, e, rec), rec, nil)
	d := fetch(t, e)
	if wound() {
		t.Error("an engine with a callback that is due stores something")
	}
	if err := d.Retry(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if !wound() {
			t.Error("a retry waits, and the clock was not wound")
		}
	}
}
