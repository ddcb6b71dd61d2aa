// Package soak keeps a gateway at four fifths of the machine's throughput, and
// checks that its memory, goroutines, files and store do not grow.
//
// CALLBACK_SOAK is the duration, such as 30m. Without it, the test takes a few
// seconds, which only shows that the soak itself works. CALLBACK_SOAK_RATE replaces
// the measured rate by a number of tasks per second. CALLBACK_SOAK_CSV names a file
// for the samples.
package soak

import (
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }
