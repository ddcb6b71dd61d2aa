package callback

import (
	"testing"
	"time"
)

func TestTheNextTickIsTheEarliestThatTheFieldsHave(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 16, 31, 36, 0, time.UTC) // a Monday
	for _, c := range []struct{ cron, zone, want string }{
		{"* * * * *", "", "2026-11-23T16:32:00Z"},
		{"*/15 * * * *", "", "2026-11-23T16:45:00Z"},
		{"5/20 * * * *", "", "2026-11-23T16:45:00Z"},
		{"0 3 * * *", "", "2026-11-24T03:00:00Z"},
		{"0 3 * * *", "Europe/Paris", "2026-11-24T02:00:00Z"},
		{"30 9-17/4 * * mon-fri", "", "2026-11-23T17:30:00Z"},
		{"0 0 13 * fri", "", "2026-11-27T00:00:00Z"}, // either
		{"0 0 1 * *", "", "2026-12-01T00:00:00Z"},
		{"0 0 29 feb *", "", "2028-02-29T00:00:00Z"},
		{"0 0 30 2 *", "", ""},
		{"@weekly", "", "2026-11-29T00:00:00Z"},
		{"@yearly", "", "2027-01-01T00:00:00Z"},
		{"@hourly", "", "2026-11-23T17:00:00Z"},
		{"@every 1h", "", ""},
		{"30 2 * 3 *", "Europe/Paris", "2027-03-01T01:30:00Z"},
	} {
		s := &Schedule{Cron: c.cron, Zone: c.zone}
		if err := s.validate(); err != nil {
			t.Fatal(err)
		}
		got := ""
		if tick := s.nextTick(now); !tick.IsZero() {
			got = tick.Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%s %s: %s, not %s", c.cron, c.zone, got, c.want)
		}
	}
	// On the day on which the clock goes from 2 to 3, half past 2 is not there.
	spring := time.Date(2027, 3, 27, 12, 0, 0, 0, time.UTC)
	s := &Schedule{Cron: "30 2 * * *", Zone: "Europe/Paris"}
	if got, want := s.nextTick(spring).Format(time.RFC3339), "2027-03-29T00:30:00Z"; got != want {
		t.Errorf("around the change of the clock it is %s, not %s", got, want)
	}
}
