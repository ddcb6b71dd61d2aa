package capture

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLargeBodiesAreKeptWhole(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	body := strings.Repeat("0123456789", 20)
	for name, test := range map[string]struct {
		o      ResponseOptions
		coding string
		want   string
	}{
		"up to the limit":      {ResponseOptions{Limit: 200, MaxLarge: 1000}, "", body},
		"over the limit":       {ResponseOptions{Limit: 15, MaxLarge: 1000}, "", body},
		"as large as it may":   {ResponseOptions{Limit: 15, MaxLarge: 200}, "", body},
		"larger than it may":   {ResponseOptions{Limit: 15, MaxLarge: 199}, "", body[:15]},
		"from the first write": {ResponseOptions{Limit: 1, MaxLarge: 199}, "", body[:1]},
		"not asked for":        {ResponseOptions{Limit: 15}, "", body[:15]},
		"without a folder":     {ResponseOptions{Limit: 15, MaxLarge: 1000, Folder: file}, "", body[:15]},
		"with a coding":        {ResponseOptions{Limit: 15, MaxLarge: 1000}, "gzip", body},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.o.Folder == "" {
				test.o.Folder = filepath.Join(t.TempDir(), "spool")
			}
			c := newResponse(nil, test.o)
			if test.coding != "" {
				c.Header().Set("Content-Encoding", test.coding)
			}
			c.WriteHeader(http.StatusOK)
			for part := range strings.SplitSeq(body, "5") {
				if part != body[len(body)-4:] {
					part += "5"
				}
				_, _ = io.WriteString(c, part)
			}
			c.Close(false)
			_, result, kept := c.Result()
			defer kept.Close()
			for range 2 { // the store may need it again
				if got, err := io.ReadAll(kept.Reader()); err != nil || string(got) != test.want || kept.Size() != int64(len(got)) {
					t.Errorf("%d bytes are kept: %q, %v", kept.Size(), got, err)
				}
			}
			if result.Size != int64(len(body)) || result.ContentEncoding != test.coding {
				t.Errorf("the result has %d bytes with the coding %q", result.Size, result.ContentEncoding)
			}
			kept.Close()
			kept.Close()
			if left, err := os.ReadDir(test.o.Folder); len(left) > 0 {
				t.Errorf("%d files remain, %v", len(left), err)
			}
		})
	}
}
