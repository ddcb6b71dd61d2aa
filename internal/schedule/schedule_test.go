package schedule

import (
	"errors"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones are the same on every machine
)

// expressions are cron expressions with an independent implementation of their meaning.
// fixed is set if the hour field has neither a star nor a step.
var expressions = []struct {
	cron    string
	matches func(w wall) bool
	fixed   bool
}{
	{"30 2 * * *", func(w wall) bool { return w.hour == 2 && w.minute == 30 }, true},
	{"0 0 * * *", func(w wall) bool { return w.hour == 0 && w.minute == 0 }, true},
	{"*/20 0-3 * * *", func(w wall) bool { return w.hour <= 3 && w.minute%20 == 0 }, true},
	{"15,45 1,23 * * *", func(w wall) bool { return (w.hour == 1 || w.hour == 23) && (w.minute == 15 || w.minute == 45) }, true},
	{"0 9 1 * *", func(w wall) bool { return w.hour == 9 && w.minute == 0 && w.day == 1 }, true},
	{"0 0 1 * *", func(w wall) bool { return w.hour == 0 && w.minute == 0 && w.day == 1 }, true},
	{"5 2 * mar,OCT fri-mon", func(w wall) bool {
		return w.hour == 2 && w.minute == 5 && (w.month == time.March || w.month == time.October) &&
			(w.weekday >= time.Friday || w.weekday <= time.Monday)
	}, true},
	{"0 3 13 * 5-7", func(w wall) bool {
		return w.hour == 3 && w.minute == 0 && (w.day == 13 || w.weekday >= time.Friday || w.weekday == time.Sunday)
	}, true},
	{"0 12 * * 7", func(w wall) bool { return w.hour == 12 && w.minute == 0 && w.weekday == time.Sunday }, true},
	{"30 * * * *", func(w wall) bool { return w.minute == 30 }, false},
	{"10 */2 * * *", func(w wall) bool { return w.hour%2 == 0 && w.minute == 10 }, false},
	{"0 1-23/4 * * THU", func(w wall) bool { return w.hour%4 == 1 && w.minute == 0 && w.weekday == time.Thursday }, false},
	{"@hourly", func(w wall) bool { return w.minute == 0 }, false},
	{"@weekly", func(w wall) bool { return w.hour == 0 && w.minute == 0 && w.weekday == time.Sunday }, true},
}

// wall is a minute as the clocks of a zone show it.
type wall struct {
	month             time.Month
	day, hour, minute int
	weekday           time.Weekday
	n                 int64 // local minutes since the epoch
}

func wallAt(t time.Time) wall {
	_, offset := t.Zone()
	return wall{t.Month(), t.Day(), t.Hour(), t.Minute(), t.Weekday(), t.Unix()/60 + int64(offset)/60}
}

// wallsOf returns the start of a year in UTC and the local time at every minute of it.
func wallsOf(year int, zone *time.Location) (start time.Time, walls []wall) {
	start = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
	for t := start; t.Year() == year; t = t.Add(time.Minute) {
		walls = append(walls, wallAt(t.In(zone)))
	}
	return start, walls
}

// runsOf finds the run times by checking every minute.
func runsOf(walls []wall, matches func(wall) bool, fixed bool) (runs []int) {
	highest := walls[0].n
	for i, w := range walls {
		due := matches(w)
		if fixed && i > 0 {
			due = due && w.n > highest
			for n := highest + 1; n < w.n; n++ { // local times that the clock change skips
				due = due || matches(wallAt(time.Unix(n*60, 0).UTC()))
			}
		}
		if due {
			runs = append(runs, i)
		}
		highest = max(highest, w.n)
	}
	return runs
}

func TestNextMatchesEveryMinuteOfYear(t *testing.T) {
	t.Parallel()
	for _, place := range []struct {
		zone string
		year int
	}{
		{"UTC", 2025}, {"Europe/Paris", 2025}, {"America/New_York", 2024}, {"America/Havana", 2025},
		{"Africa/Cairo", 2025}, {"Asia/Beirut", 2025}, {"America/Asuncion", 2023}, {"America/Sao_Paulo", 2018},
		{"Australia/Lord_Howe", 2025}, {"America/St_Johns", 2025}, {"America/St_Johns", 2006}, {"Asia/Tehran", 2022},
		{"Pacific/Apia", 2011}, {"Africa/Casablanca", 2025}, {"Europe/Dublin", 2025}, {"Asia/Kathmandu", 2025},
		{"Antarctica/Troll", 2025}, {"America/Caracas", 2016},
	} {
		t.Run(place.zone, func(t *testing.T) {
			t.Parallel()
			zone, err := time.LoadLocation(place.zone)
			if err != nil {
				t.Fatal(err)
			}
			start, walls := wallsOf(place.year, zone)
			for _, e := range expressions {
				s, err := Parse(e.cron, zone)
				if err != nil {
					t.Fatal(err)
				}
				at := start.Add(-time.Second)
				for _, i := range runsOf(walls, e.matches, e.fixed) {
					want := start.Add(time.Duration(i) * time.Minute)
					if at = s.Next(at); !at.Equal(want) {
						t.Fatalf("%s in %d: a run at %v, not at %v", e.cron, place.year, at.In(zone), want.In(zone))
					}
				}
				if at = s.Next(at); at.Year() == place.year {
					t.Errorf("%s in %d: a run more, at %v", e.cron, place.year, at.In(zone))
				}
			}
		})
	}
}

func TestNextInRepeatedHour(t *testing.T) {
	t.Parallel()
	paris, err := time.LoadLocation("Europe/Paris")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse("30 2 * * *", paris)
	if err != nil {
		t.Fatal(err)
	}
	// It is 02:10 for the second time today. Today's run was at the first 02:30.
	got := s.Next(time.Date(2025, 10, 26, 1, 10, 0, 0, time.UTC))
	if want := time.Date(2025, 10, 27, 1, 30, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("the next run is at %v, not at %v", got, want)
	}
}

func TestFollowingSkipsMissedRuns(t *testing.T) {
	t.Parallel()
	due := time.Date(2025, 5, 1, 10, 0, 0, 0, time.UTC)
	hourly, err := Parse("@hourly", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	every, err := Every(25 * time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		s         *Schedule
		now, want time.Duration // after due
	}{
		"cron at once":               {hourly, 0, time.Hour},
		"cron late":                  {hourly, 59 * time.Minute, time.Hour},
		"cron after missed runs":     {hourly, 150 * time.Minute, 3 * time.Hour},
		"cron early":                 {hourly, -time.Minute, time.Hour},
		"interval at once":           {every, 0, 25 * time.Minute},
		"interval late":              {every, time.Minute, 25 * time.Minute},
		"interval after missed runs": {every, time.Hour, 75 * time.Minute},
		"interval on the next run":   {every, 50 * time.Minute, 75 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := test.s.Following(due, due.Add(test.now)); !got.Equal(due.Add(test.want)) {
				t.Errorf("the next run is at %v, not at %v", got, due.Add(test.want))
			}
		})
	}
}

func TestLeapDaysAcrossCentury(t *testing.T) {
	t.Parallel()
	s, err := Parse("0 0 29 2 *", time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	got := s.Next(time.Date(2096, 3, 1, 0, 0, 0, 0, time.UTC))
	if want := time.Date(2104, 2, 29, 0, 0, 0, 0, time.UTC); !got.Equal(want) {
		t.Errorf("the next run is at %v, not at %v", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, expression := range []string{
		"", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8",
		"*-5 * * * *", "5-1 * * * *", "1-2-3 * * * *", "*/0 * * * *", "*/x * * * *", "59/9223372036854775807 * * * *", "1//2 * * * *", ", * * * *",
		"+5 * * * *", "-5 * * * *", "TZ=UTC * * * *", "@often", "@every 5m", "x * * * *", "* * * foo *",
	} {
		if _, err := Parse(expression, time.UTC); err == nil {
			t.Errorf("%q is accepted", expression)
		}
	}
	for _, expression := range []string{"0 0 30 2 *", "0 0 31 4,6,9,11 *"} {
		if _, err := Parse(expression, time.UTC); !errors.Is(err, ErrNever) {
			t.Errorf("%q: %v", expression, err)
		}
	}
	if _, err := Every(time.Second - 1); err == nil {
		t.Error("an interval below a second is accepted")
	}
}

func TestNextOfEveryStartsNow(t *testing.T) {
	t.Parallel()
	s, err := Every(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2025, 5, 1, 10, 0, 0, 7, time.UTC)
	if got := s.Next(now); !got.Equal(now.Add(time.Hour)) {
		t.Errorf("the first run is at %v", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, e := range expressions {
		f.Add(e.cron)
	}
	f.Fuzz(func(t *testing.T, expression string) {
		s, err := Parse(expression, time.UTC)
		if err != nil {
			return
		}
		now := time.Date(2025, 5, 1, 10, 0, 0, 0, time.UTC)
		next := s.Next(now)
		if !next.After(now) || next.Second() != 0 {
			t.Errorf("%q runs at %v after %v", expression, next, now)
		}
	})
}

func TestNewReadsConfiguration(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		expression, zone string
		next             time.Duration // until the next run
		wrong            string
	}{
		"cron in UTC":            {"30 13 * * *", "", 90 * time.Minute, ""},
		"cron in a zone":         {"30 13 * * *", "Europe/Paris", 30 * time.Minute, ""},
		"interval":               {"@every  10m", "", 10 * time.Minute, ""},
		"interval, too short":    {"@every 1ms", "", 0, "shorter than a second"},
		"interval, no duration":  {"@every soon", "", 0, `"soon" is not a duration`},
		"interval in a zone":     {"@every 1h", "UTC", 0, "no time zone"},
		"a zone of this machine": {"@daily", "Local", 0, "differs between machines"},
		"no zone":                {"@daily", "America/Nowhere", 0, "not a time zone"},
		"no expression":          {"@every", "", 0, "expected one of"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := New(tt.expression, tt.zone, time.ParseDuration)
			if tt.wrong != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wrong) {
					t.Errorf("the error is %v; expected %q in it", err, tt.wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Next(now); !got.Equal(now.Add(tt.next)) {
				t.Errorf("the next run is at %v", got)
			}
		})
	}
}
