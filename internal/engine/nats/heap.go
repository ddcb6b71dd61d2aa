package nats

// A ranking is a binary heap whose items know their position in it, so that any of
// them can be removed. The zero value needs less and at.
type ranking[T any] struct {
	items []T
	less  func(a, b T) bool
	at    func(T) *int // where an item keeps its position, -1 if it has none
}

func (r *ranking[T]) len() int { return len(r.items) }

func (r *ranking[T]) push(item T) {
	*r.at(item) = len(r.items)
	r.items = append(r.items, item)
	r.up(len(r.items) - 1)
}

// remove takes out the item at i and returns it.
func (r *ranking[T]) remove(i int) T {
	item, last := r.items[i], len(r.items)-1
	r.swap(i, last)
	var zero T
	r.items[last] = zero
	r.items = r.items[:last]
	if i < last {
		r.down(i)
		r.up(i)
	}
	*r.at(item) = -1
	return item
}

func (r *ranking[T]) swap(i, j int) {
	r.items[i], r.items[j] = r.items[j], r.items[i]
	*r.at(r.items[i]), *r.at(r.items[j]) = i, j
}

func (r *ranking[T]) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !r.less(r.items[i], r.items[parent]) {
			return
		}
		r.swap(i, parent)
		i = parent
	}
}

func (r *ranking[T]) down(i int) {
	for {
		least := i
		for _, child := range []int{2*i + 1, 2*i + 2} {
			if child < len(r.items) && r.less(r.items[child], r.items[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		r.swap(i, least)
		i = least
	}
}
