//go:build unix

package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// withoutUmask makes a gateway's process, which is this binary, start with an empty
// umask.
const withoutUmask = "CALLBACK_TEST_WITHOUT_UMASK"

func init() {
	if os.Getenv(withoutUmask) != "" {
		syscall.Umask(0)
	}
}

// TestStorePermissions checks the store after a start, a reload and a crash, because it
// contains requests and results.
func TestStorePermissions(t *testing.T) {
	t.Parallel()
	rcv := gatewaytest.NewReceiver(t, nil)
	site := gatewaytest.ExampleSite(t)
	options := gatewaytest.Delivering() + "\nqueue q\n"
	g := gatewaytest.New(t, options, site+"\ntask_queue /q q {\nrespond ok\n}")
	g.Env = []string{withoutUmask + "=1"}
	g.Start()
	check := func(when string) {
		g.Post("/q", `{}`)
		g.Post("/", `{"callback_url":"`+rcv.URL+`","large":"`+strings.Repeat("x", 2<<20)+`"}`)
		rcv.Next(t)
		files := 0
		store := filepath.Join(g.Dir, "store")
		err := filepath.WalkDir(store, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // already removed
			}
			info, err := d.Info()
			switch {
			case err != nil: // already removed
			case path == store && info.Mode().Perm() != 0o700:
				t.Errorf("%s: the folder is %v", when, info.Mode())
			case d.IsDir():
			case info.Mode().Perm() != 0o600:
				t.Errorf("%s: %s is %v", when, strings.TrimPrefix(path, store), info.Mode())
			default:
				files++
			}
			return nil
		})
		if err != nil || files < 3 {
			t.Errorf("%s: %d files: %v", when, files, err)
		}
	}
	check("at first")
	if err := g.Reload(); err != nil {
		t.Fatal(err)
	}
	check("after a reload")
	g.Kill()
	g.Start()
	check("after a crash")
}
