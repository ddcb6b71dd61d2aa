// Package cloudevents reads the callbacks of a real gateway in the format cloudevents
// with the official SDKs for Go and JavaScript. It is its own module, so that the
// gateway does not require the SDKs.
//
//	npm ci && go test ./...
package cloudevents

import (
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }
