package callback

import (
	"context"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

func TestValidateSchedules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ cron, zone, wrong string }{
		{"30 2 * * *", "", ""},
		{"30 2 * * *", "Europe/Paris", ""},
		{"0 0 * * 7", "", ""},
		{"0 0 * * fri-MON", "", ""},
		{"@daily", "America/Havana", ""},
		{"@every 90s", "", ""},
		{"@every 1d", "", ""},
		{"60 2 * * *", "", "minute"},
		{"0 0 30 2 *", "", "no such date"},
		{"TZ=UTC 2 * * *", "", "minute"},
		{"0 0 14 3 *", "America/Nowhere", "not a time zone"},
		{"0 0 * * *", "Local", "differs between machines"},
		{"@every 1ms", "", "shorter than a second"},
		{"@every 1d", "Europe/Paris", "no time zone"},
		{"@every", "", "expected one of"},
		{"@often", "", "expected one of"},
	} {
		t.Run(c.cron+" "+c.zone, func(t *testing.T) {
			t.Parallel()
			err := (&Schedule{Cron: c.cron, Zone: c.zone}).validate()
			if c.wrong == "" && err != nil {
				t.Errorf("unexpected error: %v", err)
			}
			if c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Errorf("the error is %v; expected %q in it", err, c.wrong)
			}
		})
	}
}

func TestScheduleIDDependsOnContent(t *testing.T) {
	t.Parallel()
	base := Schedule{Cron: "0 3 * * *", URI: "/nightly"}
	same := []Schedule{
		{Cron: "0  3 * * *", URI: "/nightly"},
		{Cron: "0 3 * * *", URI: "/nightly", Zone: "UTC", Method: "POST"},
	}
	others := []Schedule{
		{Cron: "0 4 * * *", URI: "/nightly"},
		{Cron: "0 3 * * *"},
		{Cron: "0 3 * * *", URI: "/nightly", Zone: "Europe/Paris"},
		{Cron: "0 3 * * *", URI: "/nightly", Method: "PUT"},
		{Cron: "0 3 * * *", URI: "/nightly", Body: "x"},
		{Cron: "0 3 * * *", URI: "/nightly", Headers: []HeaderField{{Name: "X", Value: "1"}}},
	}
	for _, s := range same {
		if s.id("q") != base.id("q") {
			t.Errorf("%+v is another schedule than %+v", s, base)
		}
	}
	seen := map[string]bool{base.id("q"): true, base.id("r"): true}
	for _, s := range others {
		if id := s.id("q"); seen[id] {
			t.Errorf("%+v is the same schedule as another", s)
		} else {
			seen[id] = true
		}
	}
	if len(seen) != len(others)+2 {
		t.Error("a schedule is the same in two queues")
	}
}

func TestEqualSchedulesAreRefused(t *testing.T) {
	t.Parallel()
	o := &QueueOptions{Schedules: []*Schedule{{Cron: "@daily"}, {Cron: "@hourly"}, {Cron: "@daily", Zone: "UTC"}}}
	if err := o.validateSchedules(); err == nil || !strings.Contains(err.Error(), "given twice") {
		t.Errorf("two equal schedules: %v", err)
	}
	o.Schedules[2].URI = "/other"
	if err := o.validateSchedules(); err != nil {
		t.Errorf("two schedules that differ in their request: %v", err)
	}
}

func TestScheduleRequestHeaders(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		schedule Schedule
		host     string
		header   http.Header
	}{
		"bare":          {Schedule{}, "localhost", http.Header{}},
		"Host":          {Schedule{Headers: []HeaderField{{"Host", "c.example"}}}, "c.example", http.Header{}},
		"host":          {Schedule{Headers: []HeaderField{{"host", "c.example"}}}, "c.example", http.Header{}},
		"HOST":          {Schedule{Headers: []HeaderField{{"HOST", "c.example"}, {"X-Host", "x"}}}, "c.example", http.Header{"X-Host": {"x"}}},
		"a body":        {Schedule{Body: "{}"}, "localhost", http.Header{"Content-Type": {"application/json"}}},
		"a body, typed": {Schedule{Body: "a", Headers: []HeaderField{{"content-type", "text/x"}}}, "localhost", http.Header{"Content-Type": {"text/x"}}},
		"a name twice":  {Schedule{Headers: []HeaderField{{"X-A", "1"}, {"x-a", "2"}}}, "localhost", http.Header{"X-A": {"1", "2"}}},
		"control bytes": {Schedule{Headers: []HeaderField{{"X-A", "1\r\nX-B: 2"}}}, "localhost", http.Header{"X-A": {"1X-B: 2"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := tt.schedule.request()
			if got.Host != tt.host || !reflect.DeepEqual(got.Header, tt.header) {
				t.Errorf("the host is %q, the header %v", got.Host, got.Header)
			}
			if got.Method != http.MethodPost || got.URI != "/" || got.Size != int64(len(tt.schedule.Body)) {
				t.Errorf("the request is %+v", got)
			}
		})
	}
}

func TestScheduleEveryDay(t *testing.T) {
	t.Parallel()
	times, err := (&Schedule{Cron: "@every 1d"}).times()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if got := times.Next(now); !got.Equal(now.Add(24 * time.Hour)) {
		t.Errorf("the next run is at %v", got)
	}
}

// runStore is an engine that keeps the run times of one schedule, and the wall clock
// time at which each run was stored.
type runStore struct {
	engine.Engine
	next time.Time
	keys map[string]bool
	runs []string
}

func (s *runStore) NextRun(_ context.Context, _ string, first time.Time) (engine.Run, error) {
	if s.next.IsZero() {
		s.next = first
	}
	return engine.Run{Next: s.next}, nil
}

func (s *runStore) Advance(_ context.Context, _ string, due, next time.Time) error {
	if !s.next.Equal(due) {
		return engine.ErrLost
	}
	s.next = next
	return nil
}

func (s *runStore) Enqueue(_ context.Context, rec *task.Record, _ io.Reader, opts engine.EnqueueOptions) (string, bool, error) {
	created := !s.keys[opts.Key.Hash]
	s.keys[opts.Key.Hash] = true
	if created {
		s.runs = append(s.runs, rec.CreatedAt.Format("15:04"))
	}
	return rec.ID, created, nil
}

func TestSchedulesRunOnceWhenTheClockIsSet(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cron   string
		after  time.Duration // time since midnight when the clock is set
		change time.Duration
		until  time.Duration // duration of the test, by a monotonic clock
		want   []string      // wall clock times at which the runs are stored
	}{
		"not set":                      {"0 * * * *", 0, 0, 2*time.Hour + time.Minute, []string{"01:00", "02:00"}},
		"forward past a run":           {"0 * * * *", 30 * time.Minute, time.Hour, 2 * time.Hour, []string{"01:30", "02:00", "03:00"}},
		"forward past many runs":       {"0 * * * *", 30 * time.Minute, 5 * time.Hour, 2 * time.Hour, []string{"05:30", "06:00", "07:00"}},
		"forward to the run":           {"30 1 * * *", 30 * time.Minute, time.Hour, 2 * time.Hour, []string{"01:30"}},
		"back before a run that was":   {"0 * * * *", 70 * time.Minute, -time.Hour, 3*time.Hour + 5*time.Minute, []string{"01:00", "02:00"}},
		"back before a run that comes": {"0 1 * * *", 59 * time.Minute, -time.Hour, 3 * time.Hour, []string{"01:00"}},
		"back after the day's run":     {"0 1 * * *", 61 * time.Minute, -time.Hour, 3 * time.Hour, []string{"01:00"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { // starts at midnight UTC
				var offset atomic.Int64
				store := &runStore{keys: make(map[string]bool)}
				s := newScheduler(store)
				s.now = func() time.Time { return time.Now().UTC().Add(time.Duration(offset.Load())) }
				metrics, _ := newTestMetrics(t)
				schedule := &Schedule{Cron: c.cron}
				times, err := schedule.times()
				if err != nil {
					t.Fatal(err)
				}
				q := &TaskQueue{Name: "q", callback: &Handler{TaskHeader: defaultTaskHeader}}
				p := &plan{id: "p", queue: q, schedule: schedule, times: times, record: task.Record{Request: schedule.request()}}
				s.start(&App{metrics: metrics, log: zap.NewNop(), plans: []*plan{p}})
				time.Sleep(c.after)
				offset.Store(int64(c.change))
				time.Sleep(c.until - c.after)
				synctest.Wait()
				s.stop()
				if !slices.Equal(store.runs, c.want) {
					t.Errorf("the runs are at %q, not %q", store.runs, c.want)
				}
			})
		})
	}
}
