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

// update makes the tests write the golden files.
var update = flag.Bool("update", false, "write the golden files in testdata/adapt")

// divider separates a Caddyfile from its expected result.
const divider = "----------\n"

// TestAdaptCaddyfiles reads testdata/adapt. Each file has a Caddyfile, a divider, and
// the JSON or, if its name begins with error_, the error. The JSON must load, except
// that of files whose name begins with invalid_.
func TestAdaptCaddyfiles(t *testing.T) {
	t.Setenv("CALLBACK_TEST_URL", "https://own.example/hook")
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
				t.Fatalf("the divider is missing; create it with go test . -run %s -update", t.Name())
			}
			got := outcome(t, name, caddyfile)
			if *update {
				if err := os.WriteFile(file, []byte(caddyfile+divider+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("adapted to\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// outcome returns the adapted JSON of a Caddyfile, and the error of loading it.
func outcome(t *testing.T, name, caddyfile string) string {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").
		Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if failing := strings.HasPrefix(name, "error_"); failing != (err != nil) {
		t.Errorf("%s: the prefix of the name does not match the error %v", name, err)
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
		t.Error("the invalid configuration was accepted")
	case invalid:
		out.WriteString(err.Error() + "\n")
	case err != nil:
		t.Errorf("the configuration does not load: %v", err)
	}
	return out.String()
}

// validate validates a configuration as `caddy validate` does.
func validate(t *testing.T, config []byte) error {
	t.Helper()
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &cfg); err != nil {
		t.Fatal(err)
	}
	return caddy.Validate(&cfg)
}
