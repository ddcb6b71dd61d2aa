package integration

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// block is a fenced code block of a page.
type block struct {
	page string // relative to the root
	line int    // the number of its first line
	lang string
	text string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

// pages returns the pages for users and contributors.
func pages(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../docs/internals/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no pages: %v", pattern, err)
		}
		for _, file := range files {
			found = append(found, strings.TrimPrefix(file, "../"))
		}
	}
	return found
}

// blocks returns the fenced code blocks of a page.
func blocks(t *testing.T, page string) (all []block) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", page))
	if err != nil {
		t.Fatal(err)
	}
	var open *block
	for i, line := range strings.SplitAfter(string(text), "\n") {
		lang, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && open == nil:
			open = &block{page: page, line: i + 2, lang: lang}
		case fence:
			all = append(all, *open)
			open = nil
		case open != nil:
			open.text += line
		}
	}
	if open != nil {
		t.Fatalf("%v: the block has no end", open)
	}
	return all
}

// each calls f for every block of a language, on all pages.
func each(t *testing.T, lang string, f func(t *testing.T, b block)) {
	t.Helper()
	found := 0
	for _, page := range pages(t) {
		for _, b := range blocks(t, page) {
			if b.lang == lang {
				found++
				t.Run(b.String(), func(t *testing.T) {
					t.Parallel()
					f(t, b)
				})
			}
		}
	}
	if found == 0 {
		t.Errorf("the docs have no block of %s", lang)
	}
}

// validate runs `caddy validate` on a configuration from the docs.
func validate(t *testing.T, b block, adapter, text string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"validate", "--config", file}
	if adapter != "" {
		args = append(args, "--adapter", adapter)
	}
	if c := runCaddy(t, dir, args...); c.code != 0 {
		t.Errorf("%v:\n%s\n%s", b, text, c.stderr)
	}
}

// The key in the specification's example replaces the placeholder in the docs.
const exampleKey = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// The docs name a file of a private CA.
const exampleCA = "/etc/caddy/internal-ca.pem"

// writeCA writes a certificate to a file and returns its name.
func writeCA(t *testing.T) string {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDocsCaddyfilesAreValid(t *testing.T) {
	t.Parallel()
	each(t, "caddyfile", func(t *testing.T, b block) {
		if formatted := string(caddyfile.Format([]byte(b.text))); formatted != b.text {
			t.Errorf("%v: caddy fmt writes\n%s", b, formatted)
		}
		text := b.text
		first := strings.Fields(text)[0]
		switch {
		case first == "{", strings.ContainsAny(first, ".:"): // options or a site
		case slices.Contains([]string{"engine", "retention", "dead", "keep_results", "queue", "delivery"}, first):
			text = "{\ncallback {\n" + text + "}\n}\n"
		case first == "schedule":
			text = "{\ncallback {\nqueue q {\n" + text + "}\n}\n}\n"
		default:
			text = "example.com {\n" + text + "}\n"
		}
		if strings.Contains(text, exampleCA) {
			text = strings.ReplaceAll(text, exampleCA, writeCA(t))
		}
		validate(t, b, "caddyfile", text)
	})
}

func TestDocsJSONIsValid(t *testing.T) {
	t.Parallel()
	each(t, "json", func(t *testing.T, b block) {
		var shape map[string]any
		if err := json.Unmarshal([]byte(b.text), &shape); err != nil {
			t.Fatalf("%v: %v", b, err)
		}
		switch {
		case shape["apps"] != nil:
			validate(t, b, "", b.text)
		case shape["handler"] != nil:
			validate(t, b, "", `{"apps":{"http":{"servers":{"srv":{"routes":[{"handle":[`+b.text+`]}]}}}}}`)
		}
	})
}

// rowOfWire matches a row of the table of results and callback bodies.
var rowOfWire = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| `([^`]+)` \\|$")

func TestDocsEncodings(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/wire.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(page), "| result | body |\n")
	rows := rowOfWire.FindAllStringSubmatch(table, -1)
	if !found || len(rows) < 3 {
		t.Fatalf("the table has %d rows", len(rows))
	}
	for _, row := range rows {
		contentType := "text/plain"
		if json.Valid([]byte(row[1])) {
			contentType = "application/json"
		}
		posted := form.Encode(form.Response{ContentType: contentType, Body: []byte(row[1])}, 1<<20)
		if string(posted.Body) != row[2] {
			t.Errorf("%s becomes %s, want %s", row[1], posted.Body, row[2])
		}
	}
}

func TestDocsSignatureVerifies(t *testing.T) {
	t.Parallel()
	hook, err := standardwebhooks.NewWebhook(exampleKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks(t, "docs/receiving.md") {
		if b.lang != "http" {
			continue
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(b.text)))
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := strings.Cut(strings.TrimSuffix(b.text, "\n"), "\n\n")
		if err := hook.VerifyIgnoringTimestamp([]byte(body), r.Header); err != nil {
			t.Errorf("%v: %v", b, err)
		}
		return
	}
	t.Error("the page shows no callback")
}

// link matches a link in a page.
var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

// heading matches a heading in a page.
var heading = regexp.MustCompile("(?m)^#+ (.+)$")

func TestDocsLinksResolve(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		text, err := os.ReadFile(filepath.Join("..", page))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			u, err := url.Parse(m[1])
			if err != nil || u.IsAbs() {
				continue // on another site
			}
			target := page
			if u.Path != "" {
				target = filepath.Join(filepath.Dir(page), u.Path)
			}
			there, err := os.ReadFile(filepath.Join("..", target))
			if err != nil {
				t.Errorf("%s: %s: %v", page, m[1], err)
				continue
			}
			if u.Fragment != "" && !slices.Contains(anchors(string(there)), u.Fragment) {
				t.Errorf("%s: %s: %s has no such heading", page, m[1], target)
			}
		}
	}
}

// anchors returns the anchors of the headings of a page.
func anchors(page string) (names []string) {
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		name := strings.Map(func(c rune) rune {
			if unicode.IsLetter(c) || unicode.IsDigit(c) || strings.ContainsRune(" -_", c) {
				return c
			}
			return -1
		}, strings.ToLower(m[1]))
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

func TestDocsCommandsAreTested(t *testing.T) {
	t.Parallel()
	each(t, "sh", func(t *testing.T, b block) {
		command := strings.TrimSpace(b.text)
		switch {
		case b.page == "README.md": // see walkthrough_test.go
			if strings.HasPrefix(command, "caddy ") {
				checkFlags(t, b, command)
			} else if command != cloneCommand && !strings.HasPrefix(command, "curl ") && command != startExample &&
				!strings.HasPrefix(command, startRun) {
				t.Errorf("%v: no test runs it", b)
			}
		case b.page == "xcaddy.md": // see xcaddy_test.go
		case b.page == "docs/run.md": // see run_test.go
		case b.page == "docs/troubleshooting.md" && strings.HasPrefix(command, "curl "): // see troubleshooting_test.go
		case b.page == "docs/api.md": // see api_docs_test.go
		case b.page == "docs/installing.md":
			for line := range strings.Lines(b.text) {
				checkInstalling(t, b, strings.TrimSpace(line))
			}
		case strings.HasPrefix(command, `echo "whsec_`):
			out, err := exec.Command("sh", "-c", b.text).Output()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := webhook.ParseKey(strings.TrimSpace(string(out))); err != nil {
				t.Errorf("%v: the command makes no valid key: %v", b, err)
			}
		case strings.HasPrefix(command, "caddy "):
			checkFlags(t, b, command)
		case b.page == "CONTRIBUTING.md", b.page == "docs/performance.md", b.page == "docs/internals/performance.md":
			for line := range strings.Lines(b.text) {
				checkContributing(t, b, strings.TrimSpace(line))
			}
		default:
			t.Errorf("%v: no test runs it", b)
		}
	})
}

// checkFlags checks that a Caddy command has the flags in the docs. Other tests check
// what the command does.
func checkFlags(t *testing.T, b block, command string) {
	t.Helper()
	words := strings.Fields(command)[1:]
	flags := slices.IndexFunc(words, func(word string) bool { return strings.HasPrefix(word, "-") })
	if flags < 0 {
		flags = len(words)
	}
	help := runCaddy(t, t.TempDir(), append(slices.Clone(words[:flags]), "--help")...)
	help.wantCode(t, 0)
	for _, word := range words[flags:] {
		if strings.HasPrefix(word, "-") && !strings.Contains(help.stdout, word+" ") {
			t.Errorf("%v: %s has no flag %s", b, strings.Join(words[:flags], " "), word)
		}
	}
}

// checkContributing checks that the Makefile targets and files of a command exist. It
// cannot run the command, because that would run these tests.
func checkContributing(t *testing.T, b block, command string) {
	t.Helper()
	words := strings.Fields(command)
	switch words[0] {
	case "make":
		makefile, err := os.ReadFile("../Makefile")
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range words[1:] {
			if !strings.Contains(string(makefile), "\n"+target+":") {
				t.Errorf("%v: the Makefile has no target %s", b, target)
			}
		}
	case "bash":
		if _, err := os.Stat(filepath.Join("..", words[1])); err != nil {
			t.Errorf("%v: %v", b, err)
		}
	default:
		t.Errorf("%v: no test runs %s", b, command)
	}
}
