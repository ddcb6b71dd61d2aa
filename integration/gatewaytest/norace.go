//go:build !race

package gatewaytest

// raceDetector reports whether the tests run with the race detector.
const raceDetector = false

// slowness is how much longer everything takes than without the race detector.
const slowness = 1

// Fewer returns n without the race detector.
func Fewer(n int) int { return n }
