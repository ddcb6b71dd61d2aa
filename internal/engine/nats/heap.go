package nats

// ranked is an item of a ranking. place points to its index there, by which it is removed.
type ranked[T any] interface {
	before(other T) bool
	place() *int
}

// A ranking is a heap with its first item at 0. It implements heap.Interface.
type ranking[T ranked[T]] []T

func (r ranking[T]) Len() int           { return len(r) }
func (r ranking[T]) Less(i, j int) bool { return r[i].before(r[j]) }

func (r ranking[T]) Swap(i, j int) {
	r[i], r[j] = r[j], r[i]
	*r[i].place(), *r[j].place() = i, j
}

func (r *ranking[T]) Push(item any) {
	*item.(T).place() = len(*r)
	*r = append(*r, item.(T))
}

func (r *ranking[T]) Pop() any {
	last := len(*r) - 1
	item := (*r)[last]
	*item.place() = -1
	clear((*r)[last:])
	*r = (*r)[:last]
	return item
}
