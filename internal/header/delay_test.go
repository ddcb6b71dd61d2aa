package header

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/problem"
)

func TestStartTimeOfRequest(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	const longest = 48 * time.Hour
	delay := func(values ...string) http.Header { return http.Header{delayHeader: values} }
	until := func(values ...string) http.Header { return http.Header{notBeforeHeader: values} }
	for name, tt := range map[string]struct {
		header  http.Header
		want    time.Time
		refusal string // its prefix
	}{
		"neither":                 {http.Header{}, time.Time{}, ""},
		"a delay":                 {delay("10m"), now.Add(10 * time.Minute), ""},
		"several units":           {delay("1h30m5s"), now.Add(time.Hour + 30*time.Minute + 5*time.Second), ""},
		"no delay":                {delay("0s"), time.Time{}, ""},
		"the longest":             {delay("48h"), now.Add(longest), ""},
		"over the longest":        {delay("48h0m0.000000001s"), time.Time{}, "task-delay: 48h0m0.000000001s is more than the 48h0m0s"},
		"a negative delay":        {delay("-1s"), time.Time{}, `task-delay: "-1s" is not`},
		"no unit":                 {delay("10"), time.Time{}, `task-delay: "10" is not`},
		"an empty delay":          {delay(""), time.Time{}, `task-delay: "" is not`},
		"an overflow":             {delay("9223372036854775808ns"), time.Time{}, "task-delay: "},
		"a long value":            {delay(strings.Repeat("d", 1<<16)), time.Time{}, "task-delay: "},
		"a list":                  {delay("1m, 2m"), time.Time{}, "task-delay: "},
		"two delays":              {delay("1m", "1m"), time.Time{}, "task-delay: the header occurs twice; send it once"},
		"an HTTP date":            {until("Tue, 01 Dec 2026 13:00:00 GMT"), now.Add(time.Hour), ""},
		"an obsolete HTTP date":   {until("Tuesday, 01-Dec-26 13:00:00 GMT"), now.Add(time.Hour), ""},
		"a time":                  {until("2026-12-01T13:00:00Z"), now.Add(time.Hour), ""},
		"a time of another zone":  {until("2026-12-01T15:00:00.25+02:00"), now.Add(time.Hour + 250*time.Millisecond), ""},
		"now":                     {until("2026-12-01T12:00:00Z"), time.Time{}, ""},
		"the past":                {until("1970-01-01T00:00:00Z"), time.Time{}, ""},
		"the latest":              {until("2026-12-03T12:00:00Z"), now.Add(longest), ""},
		"after the latest":        {until("2026-12-03T12:00:01Z"), time.Time{}, "task-not-before: the time is more than 48h0m0s from now"},
		"the end of the calendar": {until("9999-12-31T23:59:59Z"), time.Time{}, "task-not-before: the time is more"},
		"no zone":                 {until("2026-12-01T13:00:00"), time.Time{}, "task-not-before: "},
		"seconds since 1970":      {until("1796130000"), time.Time{}, "task-not-before: "},
		"no such day":             {until("2026-02-30T13:00:00Z"), time.Time{}, "task-not-before: "},
		"an empty time":           {until(""), time.Time{}, `task-not-before: "" is`},
		"two times":               {until("2026-12-01T13:00:00Z", "2026-12-01T13:00:00Z"), time.Time{}, "task-not-before: the header occurs twice; send it once"},
		"both": {http.Header{delayHeader: {"1m"}, notBeforeHeader: {"2026-12-01T13:00:00Z"}},
			time.Time{}, "task-delay: cannot be combined with task-not-before"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := StartTime(tt.header, now, longest, time.ParseDuration)
			if tt.refusal == "" {
				if err != nil || !got.Equal(tt.want) || got.Location() != time.UTC {
					t.Errorf("it starts at %v, want %v: %v", got, tt.want, err)
				}
				return
			}
			var p *problem.Problem
			if !errors.As(err, &p) || p.Status != http.StatusBadRequest || !strings.HasPrefix(p.Detail, tt.refusal) || len(p.Detail) > 300 {
				t.Errorf("the refusal is %+v", err)
			}
		})
	}
}
