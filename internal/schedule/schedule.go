// Package schedule computes the run times of cron expressions and intervals.
//
//	s, err := schedule.Parse("30 2 * * mon-fri", paris)
//	next := s.Next(time.Now())
//
// An expression has the five fields of crontab(5): minute, hour, day of month, month,
// day of week. A field is a list of values, ranges and stars, each with an optional
// step. Months and days of the week also have their English names. Sunday is 0 or 7,
// and a range of days may wrap around the end of the week. If both day fields are
// restricted, a day matches if either one does.
//
// When the clocks change, the hour field decides, as in cron daemons. If it has a star
// or a step, every instant whose local time matches is a run time. If the hours are
// fixed, a local time that does not exist runs at the first instant after the gap, once
// per gap. A local time that exists twice runs at the first of the two.
//
// This package parses the fields itself: the libraries that were evaluated skip dates
// around clock changes, or do not support 7 and fri-mon.
package schedule

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Schedule computes run times. It is immutable.
type Schedule struct {
	every  time.Duration // zero for a cron expression
	fields fields
	zone   *time.Location
}

// searchYears is how far ahead Next searches. It is more than the eight years from 29
// February 2096 to the next.
const searchYears = 10

// ErrNever is the error for an expression without run times, such as the 30th of
// February.
var ErrNever = errors.New("no date matches")

// MinInterval is the shortest interval of [Every].
const MinInterval = time.Second

// Every returns a schedule whose run times are one interval apart. It returns an error
// if the interval is shorter than [MinInterval].
func Every(interval time.Duration) (*Schedule, error) {
	if interval < MinInterval {
		return nil, fmt.Errorf("%v is shorter than a second", interval)
	}
	return &Schedule{every: interval}, nil
}

// New returns the schedule that a configuration describes: a cron expression with a time
// zone, UTC if zone is empty, or "@every" and a duration, which parse reads. It returns
// the errors of [Parse] and [Every].
func New(expression, zone string, parse func(string) (time.Duration, error)) (*Schedule, error) {
	if every, ok := strings.CutPrefix(expression, "@every "); ok {
		interval, err := parse(strings.TrimSpace(every))
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is not a duration such as 90s, 10m or 1d", every)
		case zone != "":
			return nil, errors.New("@every has no time zone")
		}
		return Every(interval)
	}
	// Gateways that share the schedule can have different local time zones.
	if zone == "Local" {
		return nil, errors.New(`the time zone "Local" differs between machines; name it, such as Europe/Paris`)
	}
	place, err := time.LoadLocation(zone)
	if err != nil {
		return nil, fmt.Errorf("%q is not a time zone", zone)
	}
	return Parse(expression, place)
}

// Parse returns the schedule of a cron expression or of one of [Descriptors]. The
// fields are local times of zone. The error wraps [ErrNever] if there are no run times.
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

// Following returns the first run time after both due, which is a run time of the
// schedule, and now. Missed runs are skipped.
func (s *Schedule) Following(due, now time.Time) time.Time {
	if now.Before(due) {
		now = due
	}
	if s.every == 0 {
		return s.Next(now)
	}
	return due.Add((now.Sub(due)/s.every + 1) * s.every)
}

// Next returns the first run time after t, in UTC. An interval begins at t. The result
// is zero if there is no run time within searchYears.
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

// period is a time during which a zone's offset from UTC does not change.
type period struct {
	start, end time.Time // zero if the period has none
	offset     time.Duration
	before     time.Duration // offset of the previous period
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

// inPeriod returns the first run time after t in a period. Within a period, a local
// time is an instant plus the offset. Local times are represented as times in UTC.
func (s *Schedule) inPeriod(p period, t time.Time) (time.Time, bool) {
	from := t.UTC().Add(p.offset).Truncate(time.Minute).Add(time.Minute)
	if !p.start.IsZero() && p.start.After(t) {
		local := p.start.UTC().Add(p.offset)
		from = ceilMinute(local)
		if !s.fields.everyInstant {
			// Local times that have already occurred in the previous period are
			// skipped.
			from = ceilMinute(latest(local, p.start.UTC().Add(p.before)))
			// Local times that occur in neither period are due at the start of this
			// one.
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
