package integration

import (
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestMain(m *testing.M) {
	gatewaytest.ShortLeases()
	gatewaytest.Main(m)
}
