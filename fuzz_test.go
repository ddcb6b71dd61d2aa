package callback

import (
	"testing"
	"time"
)

func FuzzSchedule(f *testing.F) {
	for _, cron := range []string{
		"* * * * *", "*/5 0-6 1,15 jan-MAR mon", "0 0 31 12 0", "60 * * * *", "* * 0 * *", "5-1 * * * *",
		"*/0 * * * *", "1/ * * * *", "? ? ? ? ?", "1,,2 * * * *", "* * * janx *", "+1 * * * *", "0x1 * * * *",
		"TZ=UTC 0 * * *", "TZ=0 0 0 0 0", "CRON_TZ= * * *", "@daily", "@every 10m", "@every 1ms", "@every", "@",
	} {
		f.Add(cron)
	}
	now := time.Date(2026, 11, 23, 16, 31, 36, 0, time.UTC)
	f.Fuzz(func(t *testing.T, cron string) {
		s := &Schedule{Cron: cron}
		if s.validate() != nil {
			return
		}
		times, err := s.times()
		if err != nil {
			t.Fatalf("%q is valid but has no run times: %v", cron, err)
		}
		if next := times.Next(now); !next.After(now) {
			t.Errorf("%q runs at %v after %v", cron, next, now)
		}
	})
}
