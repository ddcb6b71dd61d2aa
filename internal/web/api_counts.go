package web

import (
	"math"
	"sync"
	"time"
)

// NodeCounts counts what happens on this node, for the last ten minutes, in a
// fixed amount of memory. The zero value is ready; its methods may be called at
// once.
type NodeCounts struct {
	mu      sync.Mutex
	seconds [countedSeconds]second
	spans   [latencySpans]span
}

// Tally is what is counted.
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
	// historyStep and historyPoints are the ten minutes as they are drawn.
	historyStep   = 5 // seconds
	historyPoints = 120
	// countedSeconds are those of the history, and of the point that is not whole.
	countedSeconds = historyStep * (historyPoints + 2)
	// rateSeconds are those that rates are the average of.
	rateSeconds = 60
	// latencySpans of latencyStep seconds each are the minute that latencies are of.
	latencyStep  = 5
	latencySpans = rateSeconds / latencyStep
)

type second struct {
	at int64 // Unix time; of another one it is out of date
	Tally
}

// span has the latencies of some seconds.
type span struct {
	at             int64
	task, delivery latencies
}

// Add counts what o says. A negative number takes back what was counted.
func (n *NodeCounts) Add(o Tally) {
	now := time.Now().Unix()
	n.mu.Lock()
	defer n.mu.Unlock()
	s := &n.seconds[now%countedSeconds]
	if s.at != now {
		*s = second{at: now}
	}
	s.add(o)
}

// TaskTook notes how long a task took, from its acceptance to its verdict.
func (n *NodeCounts) TaskTook(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.span().task.add(d)
}

// DeliveryTook notes how long it took to deliver a callback, from the verdict to
// the answer that accepted it.
func (n *NodeCounts) DeliveryTook(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.span().delivery.add(d)
}

// span returns the present one. Caller holds the lock.
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

// rates are averages of the last minute, per second.
type rates struct {
	Accepted       float64 `json:"accepted"`
	Completed      float64 `json:"completed"`
	Failed         float64 `json:"failed"`
	TimedOut       float64 `json:"timed_out"`
	Delivered      float64 `json:"delivered"`
	AttemptsFailed float64 `json:"attempts_failed"`
}

// latency are quantiles of the last minute, in milliseconds; nil if there was
// nothing.
type latency struct {
	TaskP50     *float64 `json:"task_p50_ms"`
	TaskP95     *float64 `json:"task_p95_ms"`
	DeliveryP50 *float64 `json:"delivery_p50_ms"`
	DeliveryP95 *float64 `json:"delivery_p95_ms"`
}

// read returns what was counted.
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

// latencies counts durations in buckets, each a quarter longer than the one
// before: from half a millisecond to ten days. A quantile is that much exact.
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

// quantile returns the middle of the bucket that has it, in milliseconds.
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
