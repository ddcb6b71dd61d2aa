// Command bench measures the cost of the gateway. Each figure is compared with another
// one from the same run: the rounds of both alternate. The program prints medians, and
// the median ratio of the rounds.
//
//	go run .                    # all tables of docs/performance.md and docs/internals/performance.md
//	go run . -rows proxy,task   # only these rows
//	go run . -write             # also write them to these pages
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// bench is one run of the program.
type bench struct {
	rounds int
	round  time.Duration
	scale  float64 // factor for the numbers of tasks
}

// A measurement measures some rows of the table.
type measurement struct {
	name string
	what string
	run  func(*bench) (table, error)
}

var measurements = []measurement{
	{"proxy", "requests that are no task", compare(proxied)},
	{"task", "a task of a waiting client, end to end", compare(tasks)},
	{"queue", "a queue's task, from its acceptance to its delivery", compare(queueTasks)},
	{"sync", "fsync before every acknowledgement, and every 10 ms", compare(syncModes)},
	{"deliver", "deliveries from a full store", compare(deliveries)},
	{"latency", "how soon a callback is sent and a queue's task begun", compare(latencies)},
	{"isolation", "healthy hosts beside one that never answers", compare(isolation)},
	{"memory", "resident memory", compare(memory)},
	{"depth", "throughput beside what is stored", compare(depth)},
	{"start", "from the start to the first request", compare(starts)},
	{"lists", "a page of a list", compare(lists)},
	{"cost", "what a task costs", costs},
	{"profile", "where the time of a task goes", profiles},
	{"allocations", "where the allocations of a task come from", allocations},
	{"curves", "what grows with load, drawn", curves},
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
	write := flag.Bool("write", false, "write the tables into docs")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds of each side")
	flag.DurationVar(&b.round, "round", 2*time.Second, "length of a round")
	flag.Float64Var(&b.scale, "scale", 1, "of the numbers of tasks; less than 1 for a trial")
	flag.Parse()
	if err := b.main(*rows, *write); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (b *bench) main(names string, write bool) error {
	var chosen []string
	if names != "" {
		chosen = strings.Split(names, ",")
	}
	for _, name := range chosen {
		if !slices.ContainsFunc(measurements, func(m measurement) bool { return m.name == name }) {
			return fmt.Errorf("there is no %q to measure", name)
		}
	}
	defer removeStocks()
	fmt.Println(machine())
	for _, m := range measurements {
		if chosen != nil && !slices.Contains(chosen, m.name) {
			continue
		}
		fmt.Printf("\n## %s: %s\n\n", m.name, m.what)
		measured, err := m.run(b)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		table := measured.markdown()
		fmt.Print(table)
		if write {
			if err := writeTable(m.name, table); err != nil {
				return err
			}
		}
	}
	if write {
		return writeTable("machine", machine()+"\n")
	}
	return nil
}

// some returns n tasks, scaled down in a trial.
func (b *bench) some(n int) int { return max(1, int(float64(n)*b.scale)) }
