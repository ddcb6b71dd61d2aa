package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
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

// self runs this program in another role and returns its output.
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

// figureOf runs this program in another role, with a plan, and returns the figure that it
// prints.
func figureOf(as string, plan any) (figure float64, err error) {
	text, err := json.Marshal(plan)
	if err != nil {
		return 0, err
	}
	out, err := self(as, string(text))
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(out), &figure)
	return figure, err
}

// runAs runs f if the program was started in this role, and prints the figure that f
// returns. It reports whether it did.
func runAs[P any](as string, f func(plan P) (float64, error)) bool {
	text := os.Getenv(as)
	if text == "" {
		return false
	}
	var plan P
	figure, err := 0.0, json.Unmarshal([]byte(text), &plan)
	if err == nil {
		figure, err = f(plan)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(figure)
	return true
}
