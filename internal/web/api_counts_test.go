package web

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestRatesAndHistory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := new(NodeCounts)
		for range 600 {
			n.Add(Tally{Accepted: 2, Completed: 1, TimedOut: 1})
			<-time.After(time.Second)
		}
		r, _, history := n.read(time.Now().Add(-time.Second))
		if r.Accepted != 2 || r.Completed != 1 || r.TimedOut != 1 || r.Failed != 0 {
			t.Errorf("the rates are %+v", r)
		}
		if len(history) != historyPoints || history[1].Accepted != 10 || history[historyPoints-1].Completed != 5 {
			t.Errorf("the history is %+v … %+v", history[1], history[historyPoints-1])
		}
		for i, p := range history {
			if i > 0 && p.At.Sub(history[i-1].At) != historyStep*time.Second {
				t.Errorf("point %d is at %v, the one before at %v", i, p.At, history[i-1].At)
			}
		}
		<-time.After(2 * time.Minute)
		if r, _, history := n.read(time.Now()); r != (rates{}) || history[historyPoints-1].Accepted != 0 || history[0].Accepted != 10 {
			t.Errorf("two minutes later the rates are %+v, the history %+v … %+v", r, history[0], history[historyPoints-1])
		}
		<-time.After(time.Hour)
		if _, _, history := n.read(time.Now()); history[0].Accepted != 0 {
			t.Errorf("an hour later it still has %+v", history[0])
		}
	})
}

func TestQuantilePrecision(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := new(NodeCounts)
		if _, l, _ := n.read(time.Now()); l.TaskP50 != nil || l.DeliveryP95 != nil {
			t.Error("there are quantiles of nothing")
		}
		for i := range 1000 {
			n.TaskTook(time.Duration(i+1) * time.Millisecond)
			n.DeliveryTook(time.Duration(i+1) * time.Second)
		}
		n.TaskTook(-time.Second) // the clock was set back
		n.TaskTook(1e6 * time.Hour)
		_, l, _ := n.read(time.Now())
		for _, q := range []struct{ got, want float64 }{
			{*l.TaskP50, 500}, {*l.TaskP95, 950}, {*l.DeliveryP50, 500e3}, {*l.DeliveryP95, 950e3},
		} {
			if q.got < q.want*0.8 || q.got > q.want*1.25 {
				t.Errorf("%v is not %v", q.got, q.want)
			}
		}
		<-time.After(2 * time.Minute)
		if _, l, _ := n.read(time.Now()); l.TaskP50 != nil {
			t.Error("two minutes later there are quantiles still")
		}
	})
}

func TestHistoryCoversADayByMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := new(NodeCounts)
		<-time.After(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute)))
		for range 3 {
			for range 60 {
				n.Add(Tally{Accepted: 2, Delivered: 1})
				n.TaskTook(100 * time.Millisecond)
				<-time.After(time.Second)
			}
		}
		points := n.minutes(time.Now(), 5)
		for i, p := range points {
			want := Tally{}
			if i >= 2 {
				want = Tally{Accepted: 120, Delivered: 60}
			}
			measured := p.TaskP95 != nil && *p.TaskP95 > 80 && *p.TaskP95 < 125
			if p.Tally != want || measured != (i >= 2) || p.DeliveryP50 != nil || p.At.Second() != 0 || time.Since(p.At) != time.Duration(5-i)*time.Minute {
				t.Errorf("minute %d is %+v", i, p)
			}
		}
		if last := points[4]; !last.At.Equal(time.Now().Add(-time.Minute)) {
			t.Errorf("the last minute is %v", last.At)
		}
		<-time.After((dayMinutes - 3) * time.Minute)
		if points := n.minutes(time.Now(), dayMinutes); points[0].Accepted != 120 || points[2].TaskP95 == nil || points[3].Accepted != 0 {
			t.Errorf("a day later it has %+v", points[:4])
		}
		// The entries are used again.
		n.Add(Tally{Accepted: 1})
		<-time.After(time.Minute)
		if points := n.minutes(time.Now(), dayMinutes); points[0].Accepted != 120 || points[dayMinutes-1].Accepted != 1 || points[dayMinutes-1].TaskP95 != nil {
			t.Errorf("a minute later it has %+v … %+v", points[0], points[dayMinutes-1])
		}
		<-time.After(48 * time.Hour)
		if points := n.minutes(time.Now(), dayMinutes); points[0].Accepted != 0 || points[dayMinutes-1].Accepted != 0 {
			t.Error("two days later it still has counts")
		}
	})
}
