//go:build race

package gatewaytest

// raceDetector says whether the tests run with it.
const raceDetector = true

// slowness is how much longer everything takes.
const slowness = 2

// Fewer is a part of n: what a test does n times, or with n bytes, shows as many races
// with less, and each takes ten times as long.
func Fewer(n int) int { return n / 10 }
