package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// TestTheModuleBuildsIntoAnotherCaddy runs xcaddy.md's commands in a fresh
// folder beside the checkout: they are what xcaddy does.
func TestTheModuleBuildsIntoAnotherCaddy(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(root, filepath.Join(dir, "caddy-callback")); err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("set -e\n")
	var modules []string
	for _, b := range blocks(t, "xcaddy.md") {
		switch {
		case b.lang == "sh" && strings.HasPrefix(b.text, "xcaddy "):
			// Not on a machine that has only Go; the next block is what it does.
			if want := "xcaddy build --with github.com/caddy-callback/caddy-callback@v0.0.0=.\n"; b.text != want {
				t.Errorf("%v: not the command whose equivalent is run", b)
			}
		case b.lang == "sh":
			script.WriteString(b.text)
		case b.lang == "":
			modules = strings.Fields(b.text)
		}
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", script.String())
	cmd.Dir = dir
	var stderr gatewaytest.LogBuffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	listed := strings.Split(string(out), "\n")
	if len(modules) < 3 {
		t.Errorf("xcaddy.md names only %v", modules)
	}
	for _, module := range modules {
		if !slices.Contains(listed, module) {
			t.Errorf("%s is not in the Caddy that was built", module)
		}
	}
}
