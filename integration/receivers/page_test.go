package receivers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestThePageHasTheReceiversAsTheyAre(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/receiving.md")
	if err != nil {
		t.Fatal(err)
	}
	sources := []string{
		"go/main.go", "python/receiver.py", "javascript/receiver.js", "php/receiver.php",
		"ruby/receiver.rb", "java/Receiver.java", "rust/Cargo.toml", "rust/src/main.rs", "shell/receiver.sh",
	}
	for _, source := range sources {
		text, err := os.ReadFile(filepath.Join("../../examples/receivers", source))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "(../examples/receivers/"+source+"):\n\n```") {
			t.Errorf("the page does not name %s", source)
		}
		if !strings.Contains(string(page), "\n"+string(text)+"```\n") {
			t.Errorf("the page does not have %s as it is", source)
		}
	}
	for _, l := range languages {
		if _, err := os.Stat(filepath.Join("../../examples/receivers", l.name)); err != nil {
			t.Error(err)
		}
	}
	folders, err := os.ReadDir("../../examples/receivers")
	if err != nil || len(folders) != len(languages) {
		t.Errorf("there are %d receivers, and %d are tested: %v", len(folders), len(languages), err)
	}
}
