package dispatch

import (
	"container/heap"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/pace"
)

// paces are the hosts that wait because of the rate, ordered by the start of their next
// attempt.
type paces []*host

func (p paces) Len() int           { return len(p) }
func (p paces) Less(i, j int) bool { return p[i].next.Before(p[j].next) }
func (p paces) Swap(i, j int) {
	p[i], p[j] = p[j], p[i]
	p[i].paced, p[j].paced = i+1, j+1
}

// Push implements [heap.Interface].
func (p *paces) Push(x any) {
	h := x.(*host)
	*p = append(*p, h)
	h.paced = len(*p)
}

// Pop implements [heap.Interface].
func (p *paces) Pop() any {
	last := len(*p) - 1
	h := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	h.paced = 0
	return h
}

// started counts the start of an attempt against the rate of its host.
func (d *Dispatcher) started(h *host, now time.Time) {
	if d.limits.Interval <= 0 {
		return
	}
	if earliest := now.Add(-pace.Slack); h.next.Before(earliest) {
		h.next = earliest
	}
	if h.next = h.next.Add(d.limits.Interval); h.next.After(now) {
		heap.Push(&d.paced, h)
	}
}

// notStarted undoes started for an attempt that was not made.
func (d *Dispatcher) notStarted(h *host) {
	if d.limits.Interval <= 0 {
		return
	}
	h.next = h.next.Add(-d.limits.Interval)
	if h.paced > 0 {
		heap.Remove(&d.paced, h.paced-1)
	}
}

// resume allows attempts to the hosts whose next start has come.
func (d *Dispatcher) resume(now time.Time) {
	for len(d.paced) > 0 && !d.paced[0].next.After(now) {
		d.settle(heap.Pop(&d.paced).(*host))
	}
}

// setInterval changes the rate. It discards what was counted against the old rate.
func (d *Dispatcher) setInterval(interval time.Duration) {
	if interval == d.limits.Interval {
		return
	}
	d.limits.Interval = interval
	d.paced = nil
	for _, h := range d.hosts {
		h.paced, h.next = 0, time.Time{}
	}
}

// RateLimited reports whether deliveries to a host wait because of the rate. The result
// stays true for a moment after the last delivery.
func (d *Dispatcher) RateLimited(hostPort string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.hosts[hostPort]
	return h != nil && h.paced > 0 && h.due > 0
}
