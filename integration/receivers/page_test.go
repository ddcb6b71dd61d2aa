package receivers

import (
	"os"
	"strings"
	"testing"
)

func TestPageLinksEveryReceiver(t *testing.T) {
	t.Parallel()
	const folder = "../../examples/receivers/"
	text, err := os.ReadFile("../../docs/receiving.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	python, err := os.ReadFile(folder + "python/receiver.py")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, found := strings.Cut(page, "\n```python\n")
	shown, _, ends := strings.Cut(shown, "```\n")
	if !found || !ends || !strings.Contains(string(python), "\n"+shown) {
		t.Error("the page does not show a part of python/receiver.py")
	}
	for _, l := range languages {
		if !strings.Contains(page, "(../examples/receivers/"+l.name+"/") {
			t.Errorf("the page does not link the receiver in %s", l.name)
		}
	}
	folders, err := os.ReadDir(folder)
	if err != nil || len(folders) != len(languages) {
		t.Errorf("%d receivers exist, %d are tested: %v", len(folders), len(languages), err)
	}
}
