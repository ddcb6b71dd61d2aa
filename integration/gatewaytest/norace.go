//go:build !race

package gatewaytest

// RaceOptions are none without the race detector.
const RaceOptions = ""

// slowness is how much longer everything takes than without the race detector.
const slowness = 1

// Fewer is n without the race detector.
func Fewer(n int) int { return n }
