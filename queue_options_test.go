package callback

import (
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
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
		{"0 0 30 2 *", "", "no date matches"},
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
