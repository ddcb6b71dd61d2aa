package callback

import (
	"strconv"
	"strings"
	"time"
)

// descriptorFields are what the descriptors stand for.
var descriptorFields = map[string]string{
	"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
	"@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}

// tickHorizon is how far ahead a tick is looked for: the 29th of February may be
// eight years away.
const tickHorizon = 9

// nextTick is when an expression that was checked ticks next, for who wants to
// know before the engine has made the first tick. It is zero if that depends on
// when the schedule was begun (@every), or is never.
func (s *Schedule) nextTick(now time.Time) time.Time {
	expression := s.Cron
	if fields, ok := descriptorFields[expression]; ok {
		expression = fields
	}
	fields := strings.Fields(expression)
	zone, err := time.LoadLocation(s.Zone)
	if len(fields) != len(cronFields) || err != nil {
		return time.Time{}
	}
	var sets [5]uint64 // of the values that tick, a bit for each
	for i, field := range fields {
		for part := range strings.SplitSeq(field, ",") {
			sets[i] |= cronFields[i].values(part)
		}
	}
	// A day is one that both fields have, or either if both are restricted.
	either := !isStar(fields[2]) && !isStar(fields[4])
	t := now.In(zone).Truncate(time.Minute).Add(time.Minute)
	for end := t.AddDate(tickHorizon, 0, 0); t.Before(end); {
		ofMonth, ofWeek := has(sets[2], t.Day()), has(sets[4], int(t.Weekday()))
		isDay := ofMonth && ofWeek || either && (ofMonth || ofWeek)
		switch {
		case !has(sets[3], int(t.Month())) || !isDay:
			t = time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, zone)
		case !has(sets[1], t.Hour()):
			t = t.Add(time.Duration(60-t.Minute()) * time.Minute)
		case !has(sets[0], t.Minute()):
			t = t.Add(time.Minute)
		default:
			return t.UTC()
		}
	}
	return time.Time{}
}

func has(set uint64, value int) bool { return set&(1<<value) != 0 }

func isStar(field string) bool { return field[0] == '*' || field[0] == '?' }

// values are those that a part stands for, a bit for each.
func (f *cronField) values(part string) (set uint64) {
	span, every, hasStep := strings.Cut(part, "/")
	step := 1
	if hasStep {
		step, _ = strconv.Atoi(every) // it was checked
	}
	low, high := f.min, f.max
	if span != "*" && span != "?" {
		first, last, isRange := strings.Cut(span, "-")
		low, _ = f.value(first)
		switch {
		case isRange:
			high, _ = f.value(last)
		case !hasStep:
			high = low
		}
	}
	for v := low; v <= high; v += max(step, 1) {
		set |= 1 << v
	}
	return set
}
