package web

import (
	"net/url"
	"testing"
)

// FuzzAPIQuery parses the query parameters of clients.
func FuzzAPIQuery(f *testing.F) {
	for _, query := range []string{
		"", "state=dead&state=queued&queue=q&host=c.example:443", "status=FAILED&older_than=7d", "newer_than=1e400d",
		"older_than=NaNd", "older_than=-1s", "limit=0", "limit=1000", "limit=99999999999999999999", "cursor=",
		"cursor=e30", "cursor=bnVsbA", "cursor=eyJkb25lIjoxfQ", "cursor=W10", "host=%ff%00", "older_than=2562047h",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		values, _ := url.ParseQuery(query) // the part that can be parsed
		c := &call{query: values}
		if filter, given, err := c.filter(); err == nil {
			if named := len(filter.States)+len(filter.Statuses) > 0 || filter.Queue != "" || filter.Host != "" ||
				!filter.Before.IsZero() || !filter.After.IsZero(); named && !given {
				// Such a request would apply to all tasks.
				t.Errorf("%q says nothing, and is %+v", query, filter)
			}
		}
		if n, err := c.limit(defaultLimit); err == nil && (n < 1 || n > maxLimit) {
			t.Errorf("%q is a limit of %d", query, n)
		}
		if cursor, err := c.cursor(); err == nil && len(cursor) > maxCursor {
			t.Errorf("a cursor of %d bytes reaches the engine", len(cursor))
		}
	})
}
