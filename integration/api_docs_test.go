package integration

import (
	"encoding/json"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestAPIDocsCommandsWork(t *testing.T) {
	t.Parallel()
	g := gatewaytest.Start(t, "", "callback\nrespond ok")
	run := 0
	for _, b := range blocks(t, "docs/api.md") {
		if b.lang != "sh" {
			continue
		}
		run++
		command := strings.ReplaceAll(strings.TrimSpace(b.text), "localhost:2019", g.Admin)
		out, err := exec.CommandContext(t.Context(), "sh", "-c", command).Output()
		if err != nil || !json.Valid(out) {
			t.Errorf("%v: %s: %v", b, out, err)
		}
	}
	if run == 0 {
		t.Error("the page has no commands")
	}
	// The JSON examples on the page have the fields of the API's own document.
	a := adminAPI(t, g)
	for _, want := range []string{"GET /tasks", "POST /tasks/redeliver", "GET /events"} {
		if a.doc.Operations()[want] == nil {
			t.Errorf("the document has no %s", want)
		}
	}
	a.ask(http.MethodGet, "hosts?limit=3", http.StatusOK, nil)
}
