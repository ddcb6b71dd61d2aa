//go:build !race

package capture

// slowness is how many times as long everything takes; see race.go.
const slowness = 1
