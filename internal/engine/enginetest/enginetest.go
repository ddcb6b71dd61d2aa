// Package enginetest is the suite that every engine passes. It knows engines by
// the interface of package engine alone; an [Opener] says how to open one:
//
//	func TestConformance(t *testing.T) {
//		t.Parallel()
//		enginetest.Run(t, enginetest.Opener{Open: open, Kill: kill})
//	}
//
// Each case opens a store of its own. Cases with random input log their seed;
// [SeedVariable] repeats one.
package enginetest

import (
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// Opener says how to open the engine under test, and what the suite can do to it.
type Opener struct {
	// Open opens a store as a new process does: leases and deliveries of engines
	// that were closed or killed before expire, at once or after LeaseExpiry. The
	// suite closes the engine, or kills it.
	Open func(t testing.TB, s *Store) engine.Engine
	// Kill drops an engine as kill -9 does: nothing more is stored, and the store
	// can be opened again.
	Kill func(t testing.TB, e engine.Engine)
	// LeaseExpiry is how long after its death a holder's leases have expired. Zero:
	// they have once Open returns.
	LeaseExpiry time.Duration
	// Cluster is set if several engines can have one store open. Its order of
	// jobs, deliveries and lists is approximate.
	Cluster bool
	// Full leaves the store no room for new tasks until undo is called. Nil if that
	// cannot be done.
	Full func(t testing.TB, s *Store, e engine.Engine) (undo func())
	// Unavailable makes the store fail all that e asks of it until undo is
	// called; other engines have it. Nil if that cannot be done.
	Unavailable func(t testing.TB, s *Store, e engine.Engine) (undo func())
}

// Store is a store of one case.
type Store struct {
	// Dir is a folder for the store, empty at first.
	Dir string
	// Settings are those to open it with.
	Settings engine.Settings
}

// suite is one group of cases.
type suite struct {
	name  string
	cases []testcase
}

// testcase is one case: its name says what holds.
type testcase struct {
	name string
	run  func(f *fixture)
}

// Run runs the suite.
func Run(t *testing.T, o Opener) {
	suites := []suite{
		claimSuite, queueSuite, jobOrderSuite, keySuite, scheduleSuite, deliverySuite, dueSuite,
		actSuite, waitSuite, bodySuite, settingsSuite, raceSuite, listSuite,
		countSuite, faultSuite, migrateSuite,
	}
	if o.Cluster {
		suites = append(suites, clusterSuite)
	}
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range s.cases {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					c.run(newFixture(t, o))
				})
			}
		})
	}
}
