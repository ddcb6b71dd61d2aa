// Command bench measures the cost of the gateway. Each figure is compared with another
// one from the same run: the rounds of both alternate. The program prints medians, and
// the median ratio of the rounds.
//
//	go run .                    # all tables of docs/performance.md and docs/internals/performance.md
//	go run . -rows proxy,task   # only these rows
//	go run . -write             # also write them to these pages, in 20 minutes
//	go run . -trial             # try everything in seconds
package main

import (
	"flag"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"
	"time"
)

// bench is one run of the program.
type bench struct {
	rounds int           // at most
	round  time.Duration // length of one
	long   time.Duration // how long latency is measured
	scale  float64       // factor for the numbers of tasks and the sizes of results
	docs   string        // folder of the pages and pictures that are written

	budget time.Duration // of the measurement that runs
}

// A measurement measures some rows of the table.
type measurement struct {
	name     string
	what     string
	budget   time.Duration // for its rounds; see the test of their sum
	fixtures []string      // stores that it needs
	run      func(*bench) (table, error)
}

var measurements = []measurement{
	{"proxy", "requests that are no task", 38 * time.Second, nil, compare(proxied)},
	{"task", "a task of a waiting client, end to end", 34 * time.Second, nil, compare(tasks)},
	{"queue", "a queue's task, from its acceptance to its delivery", 16 * time.Second, nil, compare(queueTasks)},
	{"sync", "fsync before every acknowledgement, and every 10 ms", 16 * time.Second, nil, compare(syncModes)},
	{"deliver", "deliveries from a full store", 26 * time.Second, nil, compare(deliveries)},
	{"latency", "how soon a callback is sent and a queue's task begun", latencyBudget, nil, compare(latencies)},
	{"isolation", "healthy hosts beside one that never answers", 38 * time.Second, nil, compare(isolation)},
	{"memory", "resident memory", 70 * time.Second, []string{oneHost, manyHosts}, compare(memory)},
	{"depth", "throughput beside what is stored", 24 * time.Second, []string{mixed}, compare(depth)},
	{"start", "from the start to the first request", 10 * time.Second, []string{oneHost}, compare(starts)},
	{"lists", "a page of a list", 12 * time.Second, []string{mixed}, compare(lists)},
	{"cost", "what a task costs", 40 * time.Second, nil, costs},
	{"profile", "where the time of a task goes", 12 * time.Second, nil, profiles},
	{"allocations", "where the allocations of a task come from", 22 * time.Second, nil, allocations},
	{"curves", "what grows with load, drawn", 95 * time.Second, []string{mixed}, curves},
}

// latencyBudget covers the ten minutes in which latencies looks for pauses, and what is
// measured beside them.
const latencyBudget = 10*time.Minute + 25*time.Second

// turns yields the rounds of a part of a measurement: first 0, the warm-up, then 1 and
// up. There is at least one after the warm-up. The share is the part of the budget that
// the rounds may use.
func (b *bench) turns(share float64) iter.Seq[int] { return b.repeat(share, 2, b.rounds+1) }

// cold is like turns, without a warm-up.
func (b *bench) cold(share float64) iter.Seq[int] { return b.repeat(share, 1, b.rounds) }

func (b *bench) repeat(share float64, least, most int) iter.Seq[int] {
	return func(yield func(int) bool) {
		began, limit := time.Now(), time.Duration(share*float64(b.budget))
		for i := range most {
			// Another round takes as long as the earlier ones took on average.
			if i >= least && time.Since(began)/time.Duration(i)*time.Duration(i+1) > limit {
				return
			}
			if !yield(i) {
				return
			}
		}
	}
}

// compare adapts a measurement that compares two figures.
func compare(f func(*bench) ([]row, error)) func(*bench) (table, error) {
	return func(b *bench) (table, error) {
		rows, err := f(b)
		return comparison(rows), err
	}
}

func main() {
	if runAsCaddy() || runAsNATS() {
		return
	}
	b := &bench{}
	rows := flag.String("rows", "", "what to measure, with commas; everything if empty")
	write := flag.Bool("write", false, "write the tables and pictures into docs")
	trial := flag.Bool("trial", false, "try everything in seconds, with small numbers; the figures mean nothing")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds of each side; fewer if they take longer than planned")
	flag.DurationVar(&b.round, "round", 2*time.Second, "length of a round")
	flag.DurationVar(&b.long, "long", 10*time.Minute, "how long latency is measured")
	flag.Float64Var(&b.scale, "scale", 1, "factor for the numbers of tasks and the sizes of results")
	flag.StringVar(&b.docs, "docs", "../docs", "folder of the pages that are written")
	flag.Parse()
	if *trial {
		b.try()
	}
	if err := b.main(*rows, *write); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// try makes the numbers small.
func (b *bench) try() {
	b.rounds, b.round, b.long, b.scale = 1, 100*time.Millisecond, time.Second, 0.002
}

func (b *bench) main(names string, write bool) error {
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	began := time.Now()
	defer removeFixtures()
	fmt.Println(machine())
	if err := b.fillFixtures(chosen); err != nil {
		return err
	}
	for _, m := range chosen {
		fmt.Printf("\n## %s: %s\n\n", m.name, m.what)
		b.budget = m.budget
		var measured table
		took, err := timed(func() (err error) {
			measured, err = m.run(b)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		table := measured.markdown()
		fmt.Printf("%s\nThis took %d s of %d.\n", table, int(took.Seconds()), int(m.budget.Seconds()))
		if write {
			if err := b.writeTable(m.name, table); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\nEverything took %v.\n", time.Since(began).Round(time.Second))
	if write {
		return b.writeTable("machine", machine()+"\n")
	}
	return nil
}

// choose returns the measurements with the names, or all.
func choose(names string) (chosen []measurement, err error) {
	if names == "" {
		return measurements, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(measurements, func(m measurement) bool { return m.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no %q to measure", name)
		}
		chosen = append(chosen, measurements[i])
	}
	return chosen, nil
}

// some returns n, scaled down in a trial.
func (b *bench) some(n int) int { return max(1, int(float64(n)*b.scale)) }
