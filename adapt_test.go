package callback_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

// update writes what the parser makes of each Caddyfile into its golden file.
var update = flag.Bool("update", false, "write the golden files in testdata/adapt")

// divider stands between a Caddyfile and what becomes of it.
const divider = "----------\n"

// TestCaddyfilesAdaptAsTheyDid reads testdata/adapt: a Caddyfile, a line, then
// the JSON it becomes or, if it is named error_…, the error. What becomes JSON
// must load, too, but for the files named invalid_…: they have what only loading
// finds.
func TestCaddyfilesAdaptAsTheyDid(t *testing.T) {
	t.Setenv("OLD_KEY", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".caddyfiletest")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			caddyfile, want, found := strings.Cut(string(text), divider)
			if !found && !*update {
				t.Fatalf("there is no line of dashes: go test . -run %s -update", t.Name())
			}
			got := outcome(t, name, caddyfile)
			if *update {
				if err := os.WriteFile(file, []byte(caddyfile+divider+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("it becomes\n%s\nand not\n%s", got, want)
			}
		})
	}
}

// outcome is the JSON that a Caddyfile becomes, and what is wrong with it.
func outcome(t *testing.T, name, caddyfile string) string {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").
		Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if failing := strings.HasPrefix(name, "error_"); failing != (err != nil) {
		t.Errorf("%s is a name for something else: the error is %v", name, err)
	}
	if err != nil {
		return err.Error() + "\n"
	}
	for _, warning := range warnings {
		t.Errorf("warning: %s", warning)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, config, "", "\t"); err != nil {
		t.Fatal(err)
	}
	out.WriteByte('\n')
	err = validate(t, config)
	switch invalid := strings.HasPrefix(name, "invalid_"); {
	case invalid && err == nil:
		t.Error("it loads")
	case invalid:
		out.WriteString(err.Error() + "\n")
	case err != nil:
		t.Errorf("it does not load: %v", err)
	}
	return out.String()
}

// validate does what `caddy validate` does with a configuration.
func validate(t *testing.T, config []byte) error {
	t.Helper()
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &cfg); err != nil {
		t.Fatal(err)
	}
	return caddy.Validate(&cfg)
}
