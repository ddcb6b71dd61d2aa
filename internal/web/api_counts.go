package web

import (
	"math"
	"sync"
	"time"
)

// NodeCounts counts the events on this node: those of the last ten minutes by second,
// and those of the last day by minute. It needs a fixed amount of memory, about 160 KiB.
// The zero value is ready for use. It may be used from several goroutines at once.
type NodeCounts struct {
	mu      sync.Mutex
	seconds [countedSeconds]second
	spans   [latencySpans]span
	day     day
}

// Tally has the counters.
type Tally struct {
	Accepted       int64 `json:"accepted"`
	Completed      int64 `json:"completed"`
	Failed         int64 `json:"failed"`
	TimedOut       int64 `json:"timed_out"`
	Delivered      int64 `json:"delivered"`
	AttemptsFailed int64 `json:"attempts_failed"`
}

func (t *Tally) add(o Tally) {
	t.Accepted += o.Accepted
	t.Completed += o.Completed
	t.Failed += o.Failed
	t.TimedOut += o.TimedOut
	t.Delivered += o.Delivered
	t.AttemptsFailed += o.AttemptsFailed
}

const (
	// historyStep and historyPoints define the ten minutes of the history.
	historyStep   = 5 // seconds
	historyPoints = 120
	// countedSeconds covers the history and the point that is still incomplete.
	countedSeconds = historyStep * (historyPoints + 2)
	// rateSeconds is the period over which rates are averaged.
	rateSeconds = 60
	// latencySpans of latencyStep seconds each are the minute that latencies cover.
	latencyStep  = 5
	latencySpans = rateSeconds / latencyStep
)

type second struct {
	at int64 // Unix time; another time means that the entry is out of date
	Tally
}

// span has the latencies of a few seconds.
type span struct {
	at             int64
	task, delivery latencies
}

// Add adds o to the counters. A negative number subtracts.
func (n *NodeCounts) Add(o Tally) {
	now := time.Now().Unix()
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.seconds[now%countedSeconds]
	if s.at != now {
		*s = second{at: now}
	}
	s.add(o)
	n.day.at(now / 60).add(o)
}

// TaskTook records how long a task took from its acceptance to its verdict.
func (n *NodeCounts) TaskTook(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.span().task.add(d)
	n.day.latencies(time.Now().Unix() / 60).task.add(d)
}

// DeliveryTook records how long a delivery took from the verdict to the response that
// accepted the callback.
func (n *NodeCounts) DeliveryTook(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.span().delivery.add(d)
	n.day.latencies(time.Now().Unix() / 60).delivery.add(d)
}

// span returns the current span. The caller holds the lock.
func (n *NodeCounts) span() *span {
	at := time.Now().Unix() / latencyStep
	s := &n.spans[at%latencySpans]
	if s.at != at {
		*s = span{at: at}
	}
	return s
}

// point is a point of the history.
type point struct {
	At time.Time `json:"at"`
	Tally
}

// rates are per second, averaged over the last minute.
type rates struct {
	Accepted       float64 `json:"accepted"`
	Completed      float64 `json:"completed"`
	Failed         float64 `json:"failed"`
	TimedOut       float64 `json:"timed_out"`
	Delivered      float64 `json:"delivered"`
	AttemptsFailed float64 `json:"attempts_failed"`
}

// latency has quantiles of the last minute in milliseconds. They are nil without a
// measurement.
type latency struct {
	TaskP50     *float64 `json:"task_p50_ms"`
	TaskP95     *float64 `json:"task_p95_ms"`
	DeliveryP50 *float64 `json:"delivery_p50_ms"`
	DeliveryP95 *float64 `json:"delivery_p95_ms"`
}

// read returns the current rates, latencies and history.
func (n *NodeCounts) read(now time.Time) (r rates, l latency, history []point) {
	n.mu.Lock()
	defer n.mu.Unlock()
	unix := now.Unix()
	var minute Tally
	history = make([]point, historyPoints)
	begin := (unix/historyStep - historyPoints) * historyStep
	for i := range history {
		history[i].At = time.Unix(begin+int64(i)*historyStep, 0).UTC()
	}
	for i := range n.seconds {
		s := &n.seconds[i]
		if s.at > unix-rateSeconds && s.at <= unix {
			minute.add(s.Tally)
		}
		if i := (s.at - begin) / historyStep; s.at >= begin && i < historyPoints {
			history[i].add(s.Tally)
		}
	}
	per := func(n int64) float64 { return math.Round(float64(n)/rateSeconds*1000) / 1000 }
	r = rates{
		per(minute.Accepted), per(minute.Completed), per(minute.Failed), per(minute.TimedOut),
		per(minute.Delivered), per(minute.AttemptsFailed),
	}
	var task, delivery latencies
	for i := range n.spans {
		if s := &n.spans[i]; s.at > unix/latencyStep-latencySpans && s.at <= unix/latencyStep {
			task.merge(&s.task)
			delivery.merge(&s.delivery)
		}
	}
	return r, latency{task.quantile(0.5), task.quantile(0.95), delivery.quantile(0.5), delivery.quantile(0.95)}, history
}

// latencies counts durations in buckets from half a millisecond to ten days. Each
// bucket is a quarter wider than the one before, which is the precision of a quantile.
type latencies [buckets]uint32

const (
	buckets    = 96
	firstBound = 0.5 // milliseconds
	growth     = 1.25
)

func (l *latencies) add(d time.Duration) {
	ms := float64(d) / float64(time.Millisecond)
	i := 0
	if ms > firstBound {
		i = min(int(math.Log(ms/firstBound)/math.Log(growth))+1, buckets-1)
	}
	l[i]++
}

func (l *latencies) merge(o *latencies) {
	for i := range l {
		l[i] += o[i]
	}
}

// quantile returns the middle of the bucket that has the quantile, in milliseconds.
func (l *latencies) quantile(q float64) *float64 {
	var total uint32
	for _, n := range l {
		total += n
	}
	if total == 0 {
		return nil
	}
	rank, seen := uint32(math.Ceil(q*float64(total))), uint32(0)
	for i, n := range l {
		if seen += n; seen >= rank {
			ms := firstBound / 2
			if i > 0 {
				ms = firstBound * math.Pow(growth, float64(i)-0.5)
			}
			ms = math.Round(ms*100) / 100
			return &ms
		}
	}
	return nil
}
