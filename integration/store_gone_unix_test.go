//go:build unix

package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestRemovedStoreRefusesTasks(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.ToLocal, gatewaytest.ExampleSite(t))
	l := gatewaytest.NewLedger(rcv, t.Context().Done())
	l.Accept(g.Task(rcv.URL))
	store := filepath.Join(g.Dir, "store")
	if err := os.Rename(store, store+"-away"); err != nil {
		t.Fatal(err)
	}
	awaitRefused(g, rcv.URL, l)
	if err := os.Rename(store+"-away", store); err != nil {
		t.Fatal(err)
	}
	l.Accept(accepts(g, rcv.URL))
	l.Drain(t)
}
