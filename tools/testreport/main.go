// Command testreport reads the output of `go test -json` and prints a summary: the
// result line of each package, the output of failing tests, and the skipped tests. It
// exits with 1 if a test failed, if a test was skipped, or if no test ran, because CI
// must not pass without running every test.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is a line of test2json; see go doc test2json.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
}

// report counts the results of the tests.
type report struct {
	out    io.Writer
	output map[string]*strings.Builder // of unfinished tests, by package and test
	failed []string
	skips  []string
	passed int
	broken bool // a package failed, perhaps without any test
}

func main() {
	r := report{out: os.Stdout, output: make(map[string]*strings.Builder)}
	if err := r.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
	if !r.close() {
		os.Exit(1)
	}
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading: %w", err)
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			fmt.Fprintf(r.out, "%s", line) // not from a test
			continue
		}
		r.add(e)
	}
}

func (r *report) add(e event) {
	name := e.Package + " " + e.Test
	switch {
	case e.Action == "build-output":
		fmt.Fprint(r.out, e.Output)
	case e.Test == "":
		r.addPackage(e)
	case e.Action == "output":
		if strings.HasPrefix(e.Output, "=== ") {
			return // it started, paused or continued
		}
		if r.output[name] == nil {
			r.output[name] = new(strings.Builder)
		}
		r.output[name].WriteString(e.Output)
	case e.Action == "fail":
		r.failed = append(r.failed, name)
		if r.output[name] != nil {
			fmt.Fprintf(r.out, "\n%s:\n%s", e.Package, r.output[name])
		}
		delete(r.output, name)
	case e.Action == "skip":
		r.skips = append(r.skips, name)
		delete(r.output, name)
	case e.Action == "pass":
		r.passed++
		delete(r.output, name)
	}
}

// addPackage prints the output of a package outside of its tests, except for PASS and
// the coverage before the result line.
func (r *report) addPackage(e event) {
	switch e.Action {
	case "output":
		if e.Output != "PASS\n" && e.Output != "FAIL\n" {
			fmt.Fprint(r.out, e.Output)
		}
	case "fail":
		r.broken = true
		// The output of tests that ran when their process ended.
		for name, output := range r.output {
			if strings.HasPrefix(name, e.Package+" ") {
				fmt.Fprintf(r.out, "%s did not finish:\n%s", name, output)
				delete(r.output, name)
			}
		}
	}
}

// close prints the summary and reports whether every test passed.
func (r *report) close() bool {
	for _, name := range r.skips {
		fmt.Fprintf(r.out, "SKIPPED %s: skipped tests count as failed\n", name)
	}
	for _, name := range r.failed {
		fmt.Fprintf(r.out, "FAILED %s\n", name)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, len(r.failed), len(r.skips))
	return !r.broken && len(r.failed) == 0 && len(r.skips) == 0 && r.passed > 0
}
