//go:build !race

package gatewaytest

const RaceOptions = ""
