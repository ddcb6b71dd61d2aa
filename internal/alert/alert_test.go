package alert

import (
	"fmt"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(after time.Duration, kind string) Alert {
	return Alert{Type: kind, Timestamp: start.Add(after), Data: map[string]any{"after": after}}
}

func TestOneAlertAnHourAboutEachSubject(t *testing.T) {
	t.Parallel()
	var l Limiter
	for _, step := range []struct {
		after      time.Duration
		kind, name string
		want       int // its count, or 0 if it is not sent
	}{
		{0, Dead, "a", 1},
		{time.Minute, Dead, "a", 0},
		{2 * time.Minute, Dead, "b", 1},
		{3 * time.Minute, HostFailing, "a", 1},
		{4 * time.Minute, HostFailing, "a", 0},
		{Interval - 1, Dead, "a", 0},
		{Interval, Dead, "a", 3},
		{Interval + time.Minute, Dead, "a", 0},
		{5 * time.Hour, HostFailing, "a", 1}, // it is not held
	} {
		got, ok := l.Raise(at(step.after, step.kind), step.name, step.kind == Dead)
		if ok != (step.want > 0) || got.Count != step.want || ok && got.Data["after"] != step.after {
			t.Errorf("%v, %s of %s: %+v %v, not %d", step.after, step.kind, step.name, got, ok, step.want)
		}
	}
}

func TestHeldAlertsFollow(t *testing.T) {
	t.Parallel()
	var l Limiter
	for i := range 5 {
		l.Raise(at(time.Duration(i)*time.Minute, Dead), "a", true)
		l.Raise(at(time.Duration(i)*time.Minute, HostFailing), "a", false)
	}
	if due := l.Held(start.Add(Interval - 1)); len(due) != 0 {
		t.Errorf("too early are %+v", due)
	}
	due := l.Held(start.Add(Interval))
	if len(due) != 1 || due[0].Type != Dead || due[0].Count != 4 || due[0].Data["after"] != 4*time.Minute {
		t.Errorf("held are %+v", due)
	}
	if _, ok := l.Raise(at(Interval+1, Dead), "a", true); ok {
		t.Error("another one is sent at once")
	}
	if due := l.Held(start.Add(2 * Interval)); len(due) != 1 || due[0].Count != 1 {
		t.Errorf("held are then %+v", due)
	}
	if due := l.Held(start.Add(10 * Interval)); len(due) != 0 || len(l.subjects) != 0 {
		t.Errorf("held are in the end %+v, remembered %d", due, len(l.subjects))
	}
}

func TestSubjectsAreBounded(t *testing.T) {
	t.Parallel()
	const raised = maxSubjects + 100
	var l Limiter
	sent := 0
	for i := range raised {
		if _, ok := l.Raise(at(0, Dead), fmt.Sprint("host-", i), true); ok {
			sent++
		}
	}
	if len(l.subjects) != maxSubjects+1 || sent != maxSubjects+1 {
		t.Errorf("%d subjects are remembered, %d alerts sent", len(l.subjects), sent)
	}
	counted := sent
	for _, a := range l.Held(start.Add(Interval)) {
		counted += a.Count
	}
	if counted != raised {
		t.Errorf("%d of %d are counted", counted, raised)
	}
	if _, ok := l.Raise(at(3*Interval, Dead), "another", true); !ok || len(l.subjects) > maxSubjects {
		t.Errorf("an hour later there is no room: %d", len(l.subjects))
	}
}
