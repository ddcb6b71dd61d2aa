// Package enginetest is the test suite of all engines. It uses only the interface of
// package engine; an [Opener] opens the engine under test:
//
//	func TestConformance(t *testing.T) {
//		t.Parallel()
//		enginetest.Run(t, enginetest.Opener{Open: open, Kill: kill})
//	}
//
// Each case opens its own store. Cases with random input log their seed. Set
// [SeedVariable] to repeat a seed.
package enginetest

import (
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
)

// Opener opens the engine under test and simulates its failures.
type Opener struct {
	// Open opens a store as a new process does. The leases and deliveries of engines
	// that were closed or killed before expire at once or after LeaseExpiry. The suite
	// closes or kills the engine.
	Open func(t testing.TB, s *Store) engine.Engine
	// Kill stops an engine as kill -9 does: it stores nothing more, and the store can
	// be opened again.
	Kill func(t testing.TB, e engine.Engine)
	// LeaseExpiry is how long after its holder stopped a lease expires. Zero means that
	// it has expired when Open returns.
	LeaseExpiry time.Duration
	// Cluster is set if several engines can have one store open. The order of jobs,
	// deliveries and lists is then approximate.
	Cluster bool
	// Full leaves the store no room for new tasks until undo is called. It is nil if
	// the test cannot do that.
	Full func(t testing.TB, s *Store, e engine.Engine) (undo func())
	// Unavailable makes all operations of e on the store fail until undo is called.
	// Other engines are not affected. It is nil if the test cannot do that.
	Unavailable func(t testing.TB, s *Store, e engine.Engine) (undo func())
}

// Store is the store of one case.
type Store struct {
	// Dir is a folder for the store, initially empty.
	Dir string
	// Settings are the settings to open the store with.
	Settings engine.Settings
}

// suite is one group of cases.
type suite struct {
	name  string
	cases []testcase
}

// testcase is one case. Its name is a short phrase.
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
