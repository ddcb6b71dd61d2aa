package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// requirement matches a direct requirement in a go.mod. The group is its name without
// host and version.
var requirement = regexp.MustCompile(`(?m)^\t(?:[^/\s]+/)+?([^/\s]+)(?:/v[0-9]+|/libraries)? v\S+$`)

func TestEveryRequirementHasAReason(t *testing.T) {
	t.Parallel()
	gomod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, reasons, _ := strings.Cut(string(page), "\n## Requirements\n")
	direct := requirement.FindAllStringSubmatch(string(gomod), -1)
	if len(direct) < 5 {
		t.Fatalf("go.mod has only %d direct requirements", len(direct))
	}
	for _, m := range direct {
		if !strings.Contains(strings.ToLower(reasons), m[1]) {
			t.Errorf("CONTRIBUTING.md does not explain %s", m[1])
		}
	}
}

func TestReadingOrderNamesEveryFile(t *testing.T) {
	t.Parallel()
	order, err := os.ReadFile("../module.go")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`\b\w+\.go\b`).FindAllString(string(order), -1)
	files, err := filepath.Glob("../*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		if !strings.HasSuffix(name, "_test.go") && !slices.Contains(named, name) {
			t.Errorf("module.go does not list %s", name)
		}
	}
	for _, name := range named {
		if !slices.Contains(files, "../"+name) {
			t.Errorf("module.go lists %s, which does not exist", name)
		}
	}
}

func TestContributingListsEveryFileAndPackage(t *testing.T) {
	t.Parallel()
	_, section, found := strings.Cut(read(t, "CONTRIBUTING.md"), "\n## Project structure\n")
	section, _, _ = strings.Cut(section, "\n## ")
	listed := regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(section, -1)
	if !found || len(listed) < 20 {
		t.Fatalf("the section lists %d names", len(listed))
	}
	var there []string
	for _, pattern := range []string{"../*.go", "../internal/*", "../internal/engine/*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		there = append(there, names...)
	}
	for _, name := range there {
		name = strings.TrimPrefix(name, "../")
		inFolder := strings.HasPrefix(name, "internal/")
		if strings.HasSuffix(name, "_test.go") || inFolder && strings.HasSuffix(name, ".go") {
			continue
		}
		if !slices.ContainsFunc(listed, func(m []string) bool {
			match, err := filepath.Match(m[1], name)
			return err == nil && match
		}) {
			t.Errorf("CONTRIBUTING.md does not list %s", name)
		}
	}
}
