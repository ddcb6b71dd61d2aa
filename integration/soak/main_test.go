// Package soak holds a gateway at four fifths of what the machine does, and sees
// that nothing of it grows.
//
// CALLBACK_SOAK is how long, such as 30m; without it, a few seconds, which tell
// whether the soak itself works. CALLBACK_SOAK_RATE is how many tasks a second are
// held in place of a share of what the machine does. CALLBACK_SOAK_CSV names a
// file for the samples.
package soak

import (
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }
