//go:build race

package gatewaytest

// RaceOptions keep clear of a data race in nats-server 2.15.2 itself: it starts a
// new store's sync timer before the store is set up, and with the default of
// 10ms the timer fires in the middle.
const RaceOptions = "sync 2s"

// slowness is how much longer everything takes.
const slowness = 2

// Fewer is a part of n: what a test does n times, or with n bytes, shows as many races
// with less, and each takes ten times as long.
func Fewer(n int) int { return n / 10 }
