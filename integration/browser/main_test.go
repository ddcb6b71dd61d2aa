// Package browser tests the pages in Debian's Chromium, against a real Caddy with the
// module. It is its own module, so that the gateway does not require the browser's
// driver.
//
//	npm ci && go test ./...
//
// An error in the console, a blocked resource or a request to another host fails the
// test; see page_test.go.
package browser

import (
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }
