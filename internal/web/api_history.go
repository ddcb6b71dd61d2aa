package web

import (
	"net/http"
	"strconv"
	"time"
)

// dayMinutes is how far the history by minute goes back.
const dayMinutes = 24 * 60

// day has the counters of each minute of the last day, and of the current one.
type day struct {
	minutes [dayMinutes + 1]minute
	current span // the latencies of the current minute; its time is in minutes
}

// minute has the counters of one minute.
type minute struct {
	number int64 // since 1970; another number means that the entry is out of date
	Tally
	quantiles
}

// quantiles are latencies of one minute, in milliseconds. They are nil without a
// measurement.
type quantiles struct {
	TaskP95     *float64 `json:"task_p95_ms"`
	DeliveryP50 *float64 `json:"delivery_p50_ms"`
	DeliveryP95 *float64 `json:"delivery_p95_ms"`
}

// at returns the counters of a minute.
func (d *day) at(number int64) *minute {
	m := &d.minutes[number%int64(len(d.minutes))]
	if m.number != number {
		*m = minute{number: number}
	}
	return m
}

// latencies returns the latencies of the current minute. It stores the quantiles of the
// previous one.
func (d *day) latencies(number int64) *span {
	if c := &d.current; c.at != number {
		if c.at != 0 && c.at > number-int64(len(d.minutes)) {
			d.at(c.at).quantiles = quantiles{c.task.quantile(0.95), c.delivery.quantile(0.5), c.delivery.quantile(0.95)}
		}
		*c = span{at: number}
	}
	return &d.current
}

// minutePoint is a minute of the history.
type minutePoint struct {
	point
	quantiles
}

// history is the answer of GET history.
type history struct {
	Node   string        `json:"node"`
	Points []minutePoint `json:"points"`
}

// minutes returns the counters of the last n whole minutes, oldest first.
func (n *NodeCounts) minutes(now time.Time, count int) []minutePoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	current := now.Unix() / 60
	n.day.latencies(current)
	points := make([]minutePoint, count)
	for i := range points {
		number := current - int64(count-i)
		points[i].At = time.Unix(number*60, 0).UTC()
		if m := &n.day.minutes[number%int64(len(n.day.minutes))]; m.number == number {
			points[i].Tally, points[i].quantiles = m.Tally, m.quantiles
		}
	}
	return points
}

// history returns the counters of this node in each of the last minutes.
func (a *API) history(c *call) (int, any, error) {
	count := 60
	if text := c.query.Get("minutes"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil || count < 1 || count > dayMinutes {
			return 0, nil, badRequest("minutes: %.40q is not a number from 1 to %d", text, dayMinutes)
		}
	}
	// Like all figures, it is there only while a configuration is alive.
	_, leave, err := a.config.Open()
	if err != nil {
		return 0, nil, err
	}
	defer leave()
	return http.StatusOK, history{a.config.Node, a.config.Counts.minutes(time.Now(), count)}, nil
}
