//go:build race

package gatewaytest

// raceDetector reports whether the tests run with the race detector.
const raceDetector = true

// slowness is how much longer everything takes than without the race detector.
const slowness = 2

// Fewer returns a tenth of n. With the race detector everything takes ten times as long,
// and fewer repetitions show as many races.
func Fewer(n int) int { return n / 10 }
