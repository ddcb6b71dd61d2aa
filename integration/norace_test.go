//go:build !race

package integration

const raceOptions = ""
