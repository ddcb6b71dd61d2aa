//go:build !race

// A build with the race detector would take minutes.

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	callback "github.com/caddy-callback/caddy-callback"
	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// TestModuleBuildsIntoCaddy runs the commands of xcaddy.md that do what xcaddy does, in a
// new folder outside of the checkout.
func TestModuleBuildsIntoCaddy(t *testing.T) {
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
			// xcaddy may be missing. The next block has the equivalent commands.
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
	if ours := registered(t); !slices.Equal(modules, ours) {
		t.Errorf("xcaddy.md names %v, want %v", modules, ours)
	}
	for _, module := range modules {
		if !slices.Contains(listed, module) {
			t.Errorf("%s is not in the Caddy that was built", module)
		}
	}
}

// registered returns the IDs of the modules that this package registers with Caddy, in
// their order.
func registered(t *testing.T) (ids []string) {
	t.Helper()
	home := reflect.TypeFor[callback.App]().PkgPath()
	for _, id := range caddy.Modules() {
		info, err := caddy.GetModule(id)
		if err != nil {
			t.Fatal(err)
		}
		module := reflect.TypeOf(info.New())
		if module.Kind() == reflect.Pointer && module.Elem().PkgPath() == home {
			ids = append(ids, id)
		}
	}
	return ids
}
