// Package schedule computes the run times of cron expressions and intervals.
//
//	s, err := schedule.Parse("30 2 * * mon-fri", paris)
//	next := s.Next(time.Now())
//
// An expression has the five fields of crontab(5): minute, hour, day of month,
// month, day of week. A field is a list of values, ranges and stars, each with an
// optional step. Months and days have their English names too, Sunday is 0 or 7,
// and a range of days may go past the end of the week. If both day fields are
// restricted, either one is enough.
//
// When the clocks change, the hour field decides, as in cron daemons. If it has a
// star or a step, every instant whose local time matches is a run time. With fixed
// hours, a local time that does not exist runs at the first instant after the gap,
// once a gap; one that exists twice runs at the first of the two.
//
// The libraries that were looked at skip dates around clock changes, or do not
// know 7 and fri-mon; so the fields are parsed here as well.
package schedule

import (
	"errors"
	"fmt"
	"time"
)

// Schedule has run times. It is immutable.
type Schedule struct {
	every  time.Duration // zero for a cron expression
	fields fields
	zone   *time.Location
}

// searchYears is more than the eight years from 29 February 2096 to the next.
const searchYears = 10

// ErrNever is the error of an expression that has no run times, such as the 30th
// of February.
var ErrNever = errors.New("there is no such date")

// MinInterval is the shortest interval of [Every].
const MinInterval = time.Second

// Every returns a schedule with the same interval between all its run times.
func Every(interval time.Duration) (*Schedule, error) {
	if interval < MinInterval {
		return nil, fmt.Errorf("%v is shorter than a second", interval)
	}
	return &Schedule{every: interval}, nil
}

// Parse returns the schedule of a cron expression or of one of [Descriptors], whose
// fields are local times of zone.
func Parse(expression string, zone *time.Location) (*Schedule, error) {
	f, err := parseFields(expression)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", expression, err)
	}
	s := &Schedule{fields: f, zone: zone}
	if s.Next(time.Now()).IsZero() {
		return nil, fmt.Errorf("%q: %w", expression, ErrNever)
	}
	return s, nil
}

// Following returns the first run time after now of a schedule whose run time due
// is over: runs that were missed are skipped.
func (s *Schedule) Following(due, now time.Time) time.Time {
	if now.Before(due) {
		now = due
	}
	if s.every == 0 {
		return s.Next(now)
	}
	return due.Add((now.Sub(due)/s.every + 1) * s.every)
}

// Next returns the first run time after t, in UTC. An interval begins at t.
func (s *Schedule) Next(t time.Time) time.Time {
	if s.every != 0 {
		return t.Add(s.every).UTC()
	}
	limit := t.AddDate(searchYears, 0, 0)
	for p := periodAt(t, s.zone); ; p = periodAt(p.end, s.zone) {
		if next, ok := s.inPeriod(p, t); ok {
			return next
		}
		if p.end.IsZero() || p.end.After(limit) {
			return time.Time{}
		}
	}
}

// period is a time in which a zone's offset from UTC stays the same.
type period struct {
	start, end time.Time // zero if it has none
	offset     time.Duration
	before     time.Duration // offset of the period before
}

func periodAt(t time.Time, zone *time.Location) period {
	t = t.In(zone)
	var p period
	p.start, p.end = t.ZoneBounds()
	p.offset = offsetOf(t)
	p.before = p.offset
	if !p.start.IsZero() {
		p.before = offsetOf(p.start.Add(-time.Second))
	}
	return p
}

func offsetOf(t time.Time) time.Duration {
	_, seconds := t.Zone()
	return time.Duration(seconds) * time.Second
}

// inPeriod returns the first run time after t in a period. Within it a local time
// is an instant plus the offset; local times are written as times in UTC.
func (s *Schedule) inPeriod(p period, t time.Time) (time.Time, bool) {
	from := t.UTC().Add(p.offset).Truncate(time.Minute).Add(time.Minute)
	if !p.start.IsZero() && p.start.After(t) {
		local := p.start.UTC().Add(p.offset)
		from = ceilMinute(local)
		if !s.fields.everyInstant {
			// Local times that the period before has had as well are over.
			from = ceilMinute(latest(local, p.start.UTC().Add(p.before)))
			// Those that neither has are due now.
			if _, ok := s.fields.next(ceilMinute(p.start.UTC().Add(p.before)), local); ok {
				return p.start.UTC(), true
			}
		}
	} else if !p.start.IsZero() && !s.fields.everyInstant {
		from = latest(from, ceilMinute(p.start.UTC().Add(p.before)))
	}
	until := from.AddDate(searchYears, 0, 0)
	if !p.end.IsZero() {
		until = p.end.UTC().Add(p.offset)
	}
	local, ok := s.fields.next(from, until)
	return local.Add(-p.offset), ok
}

func ceilMinute(t time.Time) time.Time {
	return t.Add(time.Minute - time.Nanosecond).Truncate(time.Minute)
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
