//go:build race

package capture

// slowness is how many times as long everything takes with the race detector.
const slowness = 100
