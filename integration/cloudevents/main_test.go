// Package cloudevents reads the callbacks of a real gateway in format cloudevents
// with the official SDKs for Go and JavaScript. It is a module of its own, so that
// they are no requirement of the gateway's.
//
//	npm ci && go test ./...
package cloudevents

import (
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) { gatewaytest.Main(m) }
