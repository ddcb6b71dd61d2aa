package integration

import (
	"bytes"
	"image/png"
	"os"
	"strings"
	"testing"
)

// The pictures are made by the browser tests, see integration/browser.
func TestREADMEImagesAreSmall(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"docs/images/inbox.png", "docs/images/dashboard.png"} {
		if !strings.Contains(string(readme), "]("+name+")") {
			t.Errorf("the README does not show %s", name)
		}
		picture, err := os.ReadFile("../" + name)
		if err != nil {
			t.Error(err)
			continue
		}
		config, err := png.DecodeConfig(bytes.NewReader(picture))
		if err != nil || config.Width != 1280 {
			t.Errorf("%s is %d px wide, not 1280: %v", name, config.Width, err)
		}
		if len(picture) > 200<<10 {
			t.Errorf("%s has %d bytes: too many for who only reads", name, len(picture))
		}
	}
}
