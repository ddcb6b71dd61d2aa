package main

import (
	"errors"
	"sync"
	"sync/atomic"
)

// parallel calls f for 0 to n-1 with the given number of workers, until a call fails.
func parallel(workers, n int, f func(i int) error) error {
	var next atomic.Int64
	errs := make([]error, workers)
	var failed atomic.Bool
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for !failed.Load() {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if errs[w] = f(i); errs[w] != nil {
					failed.Store(true)
				}
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
