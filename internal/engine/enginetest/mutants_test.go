package enginetest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// faultVariable names the fault of the reference engine in a child process that runs
// the suite.
const faultVariable = "ENGINETEST_FAULT"

// faults are the faults of the reference engine, each with the part of the suite that
// detects it.
var faults = []struct{ name, suite string }{
	{"leases are not fenced", "claim"},
	{"leases are not fenced", "race"},
	{"crashed holders keep their tasks", "claim"},
	{"crashed holders keep their tasks", "queue"},
	{"released jobs count", "queue"},
	{"polls use attempts", "queue"},
	{"delayed jobs block others", "job_order"},
	{"key is looked up before the body is read", "idempotency_key"},
	{"schedules are not fenced", "schedule"},
	{"deliveries are taken twice", "delivery"},
	{"deliveries are not fenced", "delivery"},
	{"deliveries are not fenced", "race"},
	{"hosts are not reported again", "due_hosts"},
	{"hosts are not reported again", "delivery"},
	{"hosts are reported twice", "due_hosts"},
	{"a resumed host is still failing", "due_hosts"},
	{"stop is not fenced", "act"},
	{"deliveries to a paused host are retried", "act"},
	{"OnLost is not called", "claim"},
	{"versions do not change", "wait"},
	{"no delivery window", "settings"},
	{"no count limit", "settings"},
	{"last page is missing", "list"},
	{"import overwrites", "migrate"},
	{"counts omit finished tasks", "counts"},
	{"full store refuses verdicts", "fault"},
	{"close does not end waits", "fault"},
	{"acknowledged before it is stored", "fault"},
	{"unreadable body is stored", "body"},
}

// TestMutants checks that the suite fails on engines with one fault each.
func TestMutants(t *testing.T) {
	if fault := os.Getenv(faultVariable); fault != "" {
		patience = 2 * time.Second // many faults show as a wait that does not end
		t.Run("suite", func(t *testing.T) { Run(t, reference(fault, false)) })
		return
	}
	t.Parallel()
	for _, f := range faults {
		t.Run(f.name+" in "+f.suite, func(t *testing.T) {
			t.Parallel()
			run := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMutants$/^suite$/^"+f.suite+"$", "-test.failfast")
			run.Env = append(os.Environ(), faultVariable+"="+f.name)
			out, err := run.CombinedOutput()
			if err == nil {
				t.Errorf("the suite passes:\n%s", out)
			} else if !strings.Contains(string(out), "--- FAIL: ") {
				t.Errorf("the suite did not fail, it ended with %v:\n%s", err, out)
			}
		})
	}
}
