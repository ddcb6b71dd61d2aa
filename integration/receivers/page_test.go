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
	if !strings.Contains(page, "(../examples/receivers/python/receiver.py):\n\n```python\n"+string(python)+"```\n") {
		t.Error("the page does not show python/receiver.py as it is")
	}
	for _, l := range languages {
		if !strings.Contains(page, "(../examples/receivers/"+l.name+"/") {
			t.Errorf("the page does not link the receiver in %s", l.name)
		}
	}
	folders, err := os.ReadDir(folder)
	if err != nil || len(folders) != len(languages) {
		t.Errorf("there are %d receivers, and %d are tested: %v", len(folders), len(languages), err)
	}
}
