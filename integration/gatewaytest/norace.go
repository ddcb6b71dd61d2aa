//go:build !race

package gatewaytest

// RaceOptions are none without the race detector.
const RaceOptions = ""
