// Command peers runs the same load against several systems that run a task and call
// back, so that they can be compared on one machine. It is the clients, the endpoint that
// runs the tasks, and the receiver of the callbacks.
//
//	go run ./peers peers/systems.json
//	go run ./peers -only gateway -time 30s -kill=false peers/systems.json
//
// The file describes each system: how to start it, and how to submit a task to it. See
// docs/performance.md.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// settings are the flags of the program.
type settings struct {
	listen   string
	duration time.Duration
	rounds   int
	clients  int
	sizes    []int // of the bodies, in bytes
	rates    []int // tasks a second; 0 for as many as the system accepts
	kill     bool
	patience time.Duration // for missing callbacks
}

func main() {
	var s settings
	only := flag.String("only", "", "names of the systems to measure, with commas; all if empty")
	sizes := flag.String("sizes", "200,65536", "sizes of the bodies, in bytes")
	rates := flag.String("rates", "0,200", "tasks a second; 0 for as many as the system accepts")
	flag.StringVar(&s.listen, "listen", "127.0.0.1:9700", "address of the endpoint (/run) and the receiver (/callback/)")
	flag.DurationVar(&s.duration, "time", 10*time.Second, "length of a round")
	flag.IntVar(&s.rounds, "rounds", 3, "rounds of each load; the systems take turns")
	flag.IntVar(&s.clients, "clients", 64, "clients that submit at once")
	flag.BoolVar(&s.kill, "kill", true, "also kill each system in the middle of a round")
	flag.DurationVar(&s.patience, "patience", 30*time.Second, "how long to wait for a missing callback")
	flag.Parse()
	if err := s.main(flag.Arg(0), *only, *sizes, *rates); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (s *settings) main(file, only, sizes, rates string) (err error) {
	systems, err := readSystems(file, only)
	if err != nil {
		return err
	}
	if s.sizes, err = numbers(sizes); err != nil {
		return fmt.Errorf("-sizes: %w", err)
	}
	if s.rates, err = numbers(rates); err != nil {
		return fmt.Errorf("-rates: %w", err)
	}
	p, err := newPeer(s.listen)
	if err != nil {
		return err
	}
	defer p.close()
	fmt.Println("| load | system | tasks/s | accepted p50 | p99 | result to callback p50 | p99 | lost | repeated |")
	fmt.Println("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, size := range s.sizes {
		for _, rate := range s.rates {
			if err := s.compare(p, systems, load{size: size, rate: rate}); err != nil {
				return err
			}
		}
		if s.kill {
			if err := s.compare(p, systems, load{size: size, kill: true}); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare runs one load against the systems in turn, and prints a row for each.
func (s *settings) compare(p *peer, systems []*system, l load) error {
	results := make([][]result, len(systems))
	for range s.rounds {
		for i, sys := range systems {
			r, err := s.round(p, sys, l)
			if err != nil {
				return fmt.Errorf("%s: %w", sys.Name, err)
			}
			results[i] = append(results[i], r)
		}
	}
	for i, sys := range systems {
		fmt.Printf("| %s | %s | %s |\n", l, sys.Name, medians(results[i]))
	}
	return nil
}

// readSystems reads the systems with the given names, or all.
func readSystems(file, only string) (chosen []*system, _ error) {
	if file == "" {
		return nil, errors.New("name the file that describes the systems, such as peers/systems.json")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []*system
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	names := strings.Split(only, ",")
	for _, sys := range all {
		if only == "" || slices.Contains(names, sys.Name) {
			chosen = append(chosen, sys)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%s describes no system named %s", file, only)
	}
	return chosen, nil
}

func numbers(list string) (ns []int, _ error) {
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q is not a number", text)
		}
		ns = append(ns, n)
	}
	return ns, nil
}
