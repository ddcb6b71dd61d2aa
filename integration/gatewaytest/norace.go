//go:build !race

package gatewaytest

// RaceOptions are none without the race detector.
const RaceOptions = ""

// Fewer is n without the race detector.
func Fewer(n int) int { return n }
