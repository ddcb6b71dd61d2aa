//go:build race

package gatewaytest

// raceDetector reports whether the tests run with it.
const raceDetector = true

// slowness is how much longer everything takes.
const slowness = 2

// Fewer returns a tenth of n: with the race detector everything takes ten times as
// long, and fewer repetitions show as many races.
func Fewer(n int) int { return n / 10 }
