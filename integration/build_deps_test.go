package integration

import (
	"os/exec"
	"strings"
	"testing"
)

// The gateway needs only the NATS client library. Linking the server too would add
// megabytes, and code that listens, to every user's Caddy.
func TestBuildHasNoNATSServer(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "-deps", "../cmd/caddy").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !strings.Contains(string(out), "github.com/nats-io/nats.go/jetstream") {
		t.Errorf("the client library is not among the %d packages of the build", len(deps))
	}
	for _, dep := range deps {
		if strings.HasPrefix(dep, "github.com/nats-io/nats-server/") {
			t.Errorf("the build links %s", dep)
		}
	}
}
