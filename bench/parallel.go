package main

import (
	"errors"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
)

// parallel calls f for 0 to n-1, so many at a time, until one fails.
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

// self runs this program again, as something else, and returns what it prints.
func self(as, value string) ([]byte, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), as+"="+value)
	cmd.Stderr = os.Stderr
	return cmd.Output()
}
