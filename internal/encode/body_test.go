package encode

import (
	"net/http"
	"testing"
)

// writes counts the calls of Write.
type writes int

func (w *writes) Write(p []byte) (int, error) { *w++; return len(p), nil }

func TestSmallBodyIsSentWithHeader(t *testing.T) {
	t.Parallel()
	rec, open := record("1", "a.example:80", "small")
	body := mustEncode(t, New(Options{Folder: t.TempDir()}), rec, open)
	defer body.Release()
	content, err := body.Open()
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://a.example", content)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = body.Size
	var n writes
	if err := req.Write(&n); err != nil || n != 1 {
		t.Errorf("net/http wrote the request in %d pieces: %v", n, err)
	}
}
