package callback

import (
	"slices"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-callback/caddy-callback/internal/send"
)

func TestJitterAddsUpToAFifthAndNeverMoreThanAQuarterOfAnHour(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ wait, most time.Duration }{
		{time.Nanosecond, time.Nanosecond},
		{5 * time.Second, 6 * time.Second},
		{10 * time.Minute, 12 * time.Minute},
		{75 * time.Minute, 90 * time.Minute},
		{2 * time.Hour, 2*time.Hour + 15*time.Minute},
		{24 * time.Hour, 24*time.Hour + 15*time.Minute},
	} {
		s := &sender{opts: &Delivery{Retry: []caddy.Duration{caddy.Duration(test.wait)}}}
		shortest, longest := 1000*time.Hour, time.Duration(0)
		for range 10_000 {
			wait := s.retryIn(1, new(send.Answer))
			shortest, longest = min(shortest, wait), max(longest, wait)
		}
		if shortest < test.wait || longest > test.most {
			t.Errorf("%v becomes %v to %v, not up to %v", test.wait, shortest, longest, test.most)
		}
		if spread := test.most - test.wait; longest-shortest < spread*9/10 {
			t.Errorf("%v becomes %v to %v, which is hardly spread", test.wait, shortest, longest)
		}
	}
}

func TestTheDefaultScheduleIsTheDocumentedOne(t *testing.T) {
	t.Parallel()
	o := new(Delivery)
	if err := o.provision(); err != nil {
		t.Fatal(err)
	}
	const s, m, h = time.Second, time.Minute, time.Hour
	want := []time.Duration{5 * s, 30 * s, 2 * m, 10 * m, 30 * m, 2 * h, 5 * h, 10 * h, 14 * h, 20 * h, 24 * h}
	got := make([]time.Duration, len(o.Retry))
	for i, wait := range o.Retry {
		got[i] = time.Duration(wait)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the schedule is %v, not %v", got, want)
	}
}

func TestTheLongerOfScheduleAndRetryAfterCounts(t *testing.T) {
	t.Parallel()
	s := &sender{opts: &Delivery{Retry: []caddy.Duration{caddy.Duration(time.Minute), caddy.Duration(2 * time.Hour)}}}
	for _, test := range []struct {
		tries              int
		asked, least, most time.Duration
	}{
		{1, 0, time.Minute, 72 * time.Second},
		{1, time.Second, time.Minute, 72 * time.Second},
		{1, time.Hour, time.Hour, time.Hour},
		{2, time.Hour, 2 * time.Hour, 2*time.Hour + 15*time.Minute},
		{1, 24 * time.Hour, 24 * time.Hour, 24 * time.Hour},
		{1, 365 * 24 * time.Hour, 24 * time.Hour, 24 * time.Hour},
		{1, 1<<63 - 1, 24 * time.Hour, 24 * time.Hour},
	} {
		if got := s.retryIn(test.tries, &send.Answer{RetryAfter: test.asked}); got < test.least || got > test.most {
			t.Errorf("attempt %d, Retry-After %v: %v, not %v to %v", test.tries, test.asked, got, test.least, test.most)
		}
	}
}
