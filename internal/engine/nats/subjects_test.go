package engine

import (
	"maps"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

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
	for i := range morePage {
		subject := below + strconv.Itoa(i)
		if i%1000 > 0 && i < morePage-1 {
			err = e.link().nc.Publish(subject, data)
		} else { // the server has to keep up
			_, err = e.link().js.Publish(t.Context(), subject, data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestBehindAHostWithVeryManyDeliveriesNothingIsMissed(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	e := open(t, store, time.Minute)
	hosts := []string{"a_example:443", "a_example:4430", "crowd_example:443", "crowd_example:4430", "d_example:443"}
	for _, token := range hosts {
		rec := record(HostOfToken(token))
		if err := claim(t, e, rec).Settle(t.Context(), &rec, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	crowd(t, e, heldSubject+"crowd_example:443.")
	// What a process has moved on that died.
	moves := []func(*testing.T, *Engine, task.Record){retryInAnHour, hold, giveUp, nil}
	recs := make([]task.Record, len(moves))
	for i, move := range moves {
		recs[i] = record("c.example:443")
		settle(t, claim(t, e, recs[i]), recs[i], nil)
		if move != nil {
			move(t, e, recs[i])
		}
	}
	e.Close()
	e = open(t, store, time.Minute)
	defer e.Close()

	hosts = append(hosts, "c_example:443")
	slices.Sort(hosts)
	lanes, err := e.OpenLanes(t.Context())
	if got := slices.Sorted(maps.Keys(lanes)); err != nil || !slices.Equal(got, hosts) {
		t.Errorf("the lanes are those of %v: %v", got, err)
	}
	all, err := e.link().subjects(t.Context(), liveStream, heldSubject+">")
	if err != nil || len(all) != morePage+len(hosts) {
		t.Errorf("%d are held: %v", len(all), err)
	}

	if d := fetch(t, e); d.Record.ID != recs[len(recs)-1].ID || !d.link.moved.many {
		t.Errorf("due is %+v", d.Record)
	}
	for i, place := range []struct{ stream, below string }{{liveStream, retrySubject}, {liveStream, heldSubject + "*."}, {deadStream, deadSubject}} {
		gone(t, e, liveStream, dueSubject+"*."+recs[i].ID)
		if n := stored(t, e, place.stream, place.below+recs[i].ID); n != 1 {
			t.Errorf("on %s stand %d", place.below, n)
		}
	}
}
