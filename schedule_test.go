package callback

import (
	"testing"
	"time"
)

func TestACronIsCheckedAsTheEngineReadsIt(t *testing.T) {
	t.Parallel()
	for cron, valid := range map[string]bool{
		"30 2 * * *": true, "*/5 0-6,8 1 jan-MAR mon": true, "0 0 ? * 0/2": true, "5/10 * * * *": true,
		"60 2 * * *": false, "0 24 * * *": false, "0 0 0 * *": false, "0 0 1 13 *": false, "0 0 * * 7": false,
		"0 0 30 2 *": false, "TZ=UTC 2 * * *": false, "TZ=0 2 3 4 5": false,
		"5-1 * * * *": false, "*/0 * * * *": false, "a * * * *": false, "0 0 * anf *": false, "-1 * * * *": false, ", * * * *": false,
		"0 0 * *-! 0": false, "*-5 * * * *": false, "0 ?- * * *": false, "1-3,*-5/2 * * * *": false,
	} {
		if err := (&Schedule{Cron: cron}).validate(); (err == nil) != valid {
			t.Errorf("%q: %v", cron, err)
		}
	}
}

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
		{"0 0 13 * fri", "", "2026-11-27T00:00:00Z"},  // either
		{"0 0 */2 * fri", "", "2026-11-25T00:00:00Z"}, // a step restricts, too
		{"0 0 1 * *", "", "2026-12-01T00:00:00Z"},
		{"0 0 29 feb *", "", "2028-02-29T00:00:00Z"},
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
