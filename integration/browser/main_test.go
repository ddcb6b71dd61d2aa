// Package browser tests the pages as people use them: in Debian's Chromium,
// against a real Caddy with the module. It is a module of its own, so that the
// browser's driver is no requirement of the gateway's.
//
//	npm ci && go test ./...
//
// Every page that a test opens is watched: an error in the console, a resource
// that is blocked, or a request to another host fails the test. (page_test.go)
package browser

import (
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }
