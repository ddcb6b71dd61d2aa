// Package faults tests the guarantees of the gateway under faults: crashes, full disks,
// damage, clocks, networks. Each test injects one fault into real gateways in their own
// processes, and reports a line of the table that is printed at the end.
//
// CALLBACK_FAULTS selects how often the faults are injected: "long" (half an hour),
// "short" (a few minutes), or once each if it is unset.
package faults

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) {
	if code, ended := inOwnNamespace(); ended {
		os.Exit(code)
	}
	if os.Getenv(inNamespace) != "" && os.Getenv(gatewaytest.AsCaddy)+os.Getenv(gatewaytest.AsNATS) == "" {
		gatewaytest.RunAtOnce(6)
	}
	gatewaytest.Main(m, printTable)
}

// pick returns the value for the selected form of the suite.
func pick(once, short, long int) int {
	switch form := os.Getenv("CALLBACK_FAULTS"); form {
	case "":
		return once
	case "short":
		return short
	case "long":
		return long
	default:
		panic(fmt.Sprintf("CALLBACK_FAULTS is %q; expected short, long or unset", form))
	}
}

// row is a line of the table.
type row struct {
	fault string // as numbered in the issue
	tried int
	gatewaytest.Tally
}

var table struct {
	mu   sync.Mutex
	rows []row
}

// report adds a line to the table and fails the test for lost tasks and second verdicts.
func report(t *testing.T, fault string, tried int, tally gatewaytest.Tally) {
	t.Helper()
	if tally.Lost > 0 {
		t.Errorf("%s: %+v", fault, tally)
	}
	reportLosses(t, fault, tried, tally)
}

// reportLosses is report for a fault that destroys stored tasks.
func reportLosses(t *testing.T, fault string, tried int, tally gatewaytest.Tally) {
	t.Helper()
	table.mu.Lock()
	defer table.mu.Unlock()
	table.rows = append(table.rows, row{fault, tried, tally})
	if tally.Second > 0 {
		t.Errorf("%s: %+v", fault, tally)
	}
	if tried == 0 || tally.Accepted == 0 || tally.Arrived == 0 {
		t.Errorf("%s: no task was affected: %d times, %+v", fault, tried, tally)
	}
}

// printTable prints the reported lines.
func printTable() {
	table.mu.Lock()
	defer table.mu.Unlock()
	if len(table.rows) == 0 {
		return
	}
	// Sort by number: 10 comes after 9.
	slices.SortFunc(table.rows, func(a, b row) int {
		if d := number(a.fault) - number(b.fault); d != 0 {
			return d
		}
		return strings.Compare(a.fault, b.fault)
	})
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| fault\t| times tried\t| tasks accepted\t| callbacks arrived\t| lost\t| repeated\t| second verdicts\t|")
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, r := range table.rows {
		fmt.Fprintf(w, "| %s\t| %d\t| %d\t| %d\t| %d\t| %d\t| %d\t|\n",
			r.fault, r.tried, r.Accepted, r.Arrived, r.Lost, r.Repeated, r.Second)
	}
	_ = w.Flush() // an error could not be reported
}

// receive starts a receiver that responds to each callback with answer.
func receive(t *testing.T, answer func(w http.ResponseWriter, path string, c gatewaytest.Callback)) (url string) {
	t.Helper()
	srv := gatewaytest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the gateway was killed while sending
		}
		answer(w, r.URL.Path, gatewaytest.Callback{Header: r.Header, Body: string(body), At: time.Now()})
	}))
	srv.Start()
	return srv.URL
}

func number(fault string) (n int) {
	_, _ = fmt.Sscanf(fault, "%d.", &n) // 0 without a number
	return n
}
