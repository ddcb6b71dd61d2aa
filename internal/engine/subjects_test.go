package engine

import (
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// morePage is how many subjects are more than the server lists at once.
const morePage = server.JSMaxSubjectDetails + 1

// crowd stores more than a page of tasks below a subject, with IDs of their own.
func crowd(t *testing.T, e *Engine, below string) {
	t.Helper()
	rec := record("crowd.example:443")
	data, err := frame(&rec, nil, recordRoom)
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(e.link().nc, jetstream.WithPublishAsyncMaxPending(1000))
	if err != nil {
		t.Fatal(err)
	}
	for i := range morePage {
		if _, err := js.PublishAsync(below+strconv.Itoa(i), data, jetstream.WithStallWait(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(5 * time.Minute):
		t.Fatal("they are not stored")
	}
}

func TestTheLanesOfAllHostsAreFoundBehindOneWithVeryManyDeliveries(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	e := open(t, store, time.Minute)
	want := []string{"a_example:443", "a_example:4430", "crowd_example:443", "crowd_example:4430", "d_example:443"}
	for _, token := range want {
		rec := record(HostOfToken(token))
		if err := claim(t, e, rec).Settle(t.Context(), &rec, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	crowd(t, e, heldSubject+"crowd_example:443.")
	e.Close()
	e = open(t, store, time.Minute)
	defer e.Close()
	lanes, err := e.OpenLanes(t.Context())
	if got := slices.Sorted(maps.Keys(lanes)); err != nil || !slices.Equal(got, want) {
		t.Errorf("the lanes are those of %v: %v", got, err)
	}
	all, err := e.link().subjects(t.Context(), liveStream, heldSubject+">")
	if err != nil || len(all) != morePage+len(want) {
		t.Errorf("%d are held: %v", len(all), err)
	}
}

func TestAmongVeryManyThatWasMovedOnIsNotAttemptedWhereItStood(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	e := open(t, store, time.Minute)
	moves := []func(*testing.T, *Engine, task.Record){retryInAnHour, hold, giveUp, nil}
	recs := make([]task.Record, len(moves))
	for i, move := range moves {
		recs[i] = record("c.example:443")
		settle(t, claim(t, e, recs[i]), recs[i], nil)
		if move != nil {
			move(t, e, recs[i])
		}
	}
	crowd(t, e, deadSubject)
	e.Close()
	e = open(t, store, time.Minute)
	defer e.Close()
	if d := fetch(t, e); d.Record.ID != recs[len(recs)-1].ID || !d.link.moved.many {
		t.Errorf("due is %+v", d.Record)
	}
	for _, rec := range recs[:len(recs)-1] {
		gone(t, e, liveStream, dueSubject+"*."+rec.ID)
	}
	for stream, below := range map[string]string{liveStream: retrySubject + recs[0].ID, deadStream: deadSubject + recs[2].ID} {
		if n := stored(t, e, stream, below); n != 1 {
			t.Errorf("on %s stand %d", below, n)
		}
	}
	if n := stored(t, e, liveStream, heldSubject+"*."+recs[1].ID); n != 1 {
		t.Errorf("%d are held", n)
	}
}
