package schedule

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fields are the five fields of an expression; bit n is set if n matches.
type fields struct {
	minute, hour, day, month, weekday uint64
	anyDay, anyWeekday                bool // the field is a star
	everyInstant                      bool // the hour field has a star or a step
}

// descriptors maps names such as @daily to their expressions.
var descriptors = map[string]string{
	"@yearly":   "0 0 1 1 *",
	"@annually": "0 0 1 1 *",
	"@monthly":  "0 0 1 * *",
	"@weekly":   "0 0 * * 0",
	"@daily":    "0 0 * * *",
	"@midnight": "0 0 * * *",
	"@hourly":   "0 * * * *",
}

// Descriptors returns the names that stand for expressions, such as @daily.
func Descriptors() []string { return slices.Sorted(maps.Keys(descriptors)) }

// bounds are the permitted values of a field.
type bounds struct {
	name     string
	min, max int
	names    []string // the names of the values, from min on
	week     bool     // ranges wrap around: max+1 is min again
}

var (
	minutes = bounds{name: "minute", max: 59}
	hours   = bounds{name: "hour", max: 23}
	days    = bounds{name: "day of month", min: 1, max: 31}
	months  = bounds{name: "month", min: 1, max: 12,
		names: []string{"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"}}
	weekdays = bounds{name: "day of week", max: 6, week: true,
		names: []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}}
)

func parseFields(expression string) (f fields, err error) {
	if strings.HasPrefix(expression, "@") {
		known, ok := descriptors[expression]
		if !ok {
			return f, fmt.Errorf("expected one of %s, @every", strings.Join(Descriptors(), ", "))
		}
		expression = known
	}
	words := strings.Fields(expression)
	if len(words) != 5 {
		return f, fmt.Errorf("%d fields; expected minute, hour, day of month, month, day of week", len(words))
	}
	parse := func(word string, b bounds) (bits uint64) {
		if err == nil {
			bits, err = b.parse(word)
		}
		return bits
	}
	f.minute, f.hour = parse(words[0], minutes), parse(words[1], hours)
	f.day, f.month, f.weekday = parse(words[2], days), parse(words[3], months), parse(words[4], weekdays)
	f.anyDay, f.anyWeekday = isStar(words[2]), isStar(words[4])
	f.everyInstant = strings.ContainsAny(words[1], "*?/")
	return f, err
}

// isStar reports whether one of a field's items is a star without a step.
func isStar(word string) bool {
	for item := range strings.SplitSeq(word, ",") {
		if item == "*" || item == "?" || item == "*/1" {
			return true
		}
	}
	return false
}

// parse returns the values of a field as a bit set.
func (b bounds) parse(word string) (bits uint64, _ error) {
	for item := range strings.SplitSeq(word, ",") {
		first, last, step, err := b.parseItem(item)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", b.name, err)
		}
		for v := first; v <= last; v += step {
			bits |= 1 << (b.min + (v-b.min)%(b.max-b.min+1))
		}
	}
	return bits, nil
}

// parseItem parses one item of a field's list: a star, a value or a range, with an
// optional step. A value with a step is a range from the value to the end.
func (b bounds) parseItem(item string) (first, last, step int, err error) {
	values, steps, hasStep := strings.Cut(item, "/")
	step = 1
	if hasStep {
		if step, err = strconv.Atoi(steps); err != nil || step < 1 || step > b.max {
			return 0, 0, 0, fmt.Errorf("%q: the step is not a number from 1 to %d", item, b.max)
		}
	}
	if values == "*" || values == "?" {
		return b.min, b.max, step, nil
	}
	low, high, isRange := strings.Cut(values, "-")
	if first, err = b.value(low); err != nil {
		return 0, 0, 0, err
	}
	switch {
	case isRange:
		if last, err = b.value(high); err != nil {
			return 0, 0, 0, err
		}
	case hasStep:
		last = b.max
	default:
		last = first
	}
	if last < first && b.week {
		last += b.max - b.min + 1
	}
	if last < first {
		return 0, 0, 0, fmt.Errorf("%q: the range ends before it begins", item)
	}
	return first, last, step, nil
}

// value parses a number or a name.
func (b bounds) value(word string) (int, error) {
	if i := slices.Index(b.names, strings.ToLower(word)); i >= 0 {
		return b.min + i, nil
	}
	highest := b.max
	if b.week {
		highest++ // 7 is Sunday too
	}
	n, err := strconv.Atoi(word)
	if err != nil || n < b.min || n > highest || word[0] == '+' {
		return 0, fmt.Errorf("%q is not from %d to %d", word, b.min, highest)
	}
	return n, nil
}

// next returns the first matching minute that is not before from and is before until.
// It reports false if there is none. Local times are represented as times in UTC.
func (f *fields) next(from, until time.Time) (time.Time, bool) {
	for t := from; t.Before(until); {
		year, month, day := t.Date()
		switch {
		case f.month&(1<<month) == 0:
			t = time.Date(year, month+1, 1, 0, 0, 0, 0, time.UTC)
		case !f.matchesDay(t):
			t = time.Date(year, month, day+1, 0, 0, 0, 0, time.UTC)
		case f.hour&(1<<t.Hour()) == 0:
			t = time.Date(year, month, day, t.Hour()+1, 0, 0, 0, time.UTC)
		case f.minute&(1<<t.Minute()) == 0:
			t = t.Add(time.Minute)
		default:
			return t, true
		}
	}
	return time.Time{}, false
}

func (f *fields) matchesDay(t time.Time) bool {
	day, weekday := f.day&(1<<t.Day()) != 0, f.weekday&(1<<t.Weekday()) != 0
	if f.anyDay || f.anyWeekday {
		return day && weekday
	}
	return day || weekday
}
