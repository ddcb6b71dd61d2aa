package dispatch

import "container/heap"

// position is the position of a host or a participant in an order.
type position struct {
	running int   // attempts in flight
	rank    int64 // decides among those with equally many in flight: the lowest is next
	index   int   // in the order, from 1; 0 if it is in no order
}

func (p *position) at() *position { return p }

// order is a priority queue of hosts or participants. The one with the fewest attempts
// in flight is first.
type order[T interface{ at() *position }] []T

func (o order[T]) Len() int { return len(o) }

func (o order[T]) Less(i, j int) bool {
	a, b := o[i].at(), o[j].at()
	if a.running != b.running {
		return a.running < b.running
	}
	return a.rank < b.rank
}

func (o order[T]) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].at().index, o[j].at().index = i+1, j+1
}

// Push implements [heap.Interface]; call add.
func (o *order[T]) Push(x any) {
	item := x.(T)
	*o = append(*o, item)
	item.at().index = len(*o)
}

// Pop implements [heap.Interface]; call remove.
func (o *order[T]) Pop() any {
	last := len(*o) - 1
	item := (*o)[last]
	clear((*o)[last:])
	*o = (*o)[:last]
	item.at().index = 0
	return item
}

// add inserts an item, or moves it to its new position.
func (o *order[T]) add(item T) {
	if i := item.at().index; i > 0 {
		heap.Fix(o, i-1)
		return
	}
	heap.Push(o, item)
}

func (o *order[T]) remove(item T) {
	if i := item.at().index; i > 0 {
		heap.Remove(o, i-1)
	}
}

// lead returns how many attempts the first item may start before the second has fewer
// in flight. The result is at most n and at least 1.
func (o order[T]) lead(n int) int {
	first := o[0].at().running
	for i := 1; i < min(len(o), 3); i++ {
		n = min(n, o[i].at().running-first+1)
	}
	return max(1, n)
}
