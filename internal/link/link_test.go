package link

import (
	"errors"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestLinksAreVerified(t *testing.T) {
	t.Parallel()
	const id, other = "0193b1de-7a4c-7cc3-98c4-dc0c0c07398f", "0193b1de-7a4c-7cc3-98c4-dc0c0c073990"
	secret, expires := []byte("secret"), time.Unix(2_000_000_000, 0)
	made, err := url.Parse(New(secret, "https://example.com/tasks/", id, expires))
	if err != nil {
		t.Fatal(err)
	}
	if made.Host != "example.com" || made.Path != "/tasks/"+id+"/result" {
		t.Errorf("the link is %s", made)
	}
	query := made.Query()
	with := func(name, value string) url.Values {
		changed := url.Values{name: {value}}
		for other, values := range query {
			if other != name {
				changed[other] = values
			}
		}
		return changed
	}
	later := strconv.FormatInt(expires.Unix()+1, 10)
	before := expires.Add(-time.Second)
	for name, test := range map[string]struct {
		secret string
		id     string
		query  url.Values
		now    time.Time
		want   error
	}{
		"valid":           {"secret", id, query, before, nil},
		"at its end":      {"secret", id, query, expires, ErrExpired},
		"another task":    {"secret", other, query, before, ErrForged},
		"another secret":  {"Secret", id, query, before, ErrForged},
		"a longer time":   {"secret", id, with("expires", later), before, ErrForged},
		"no time":         {"secret", id, with("expires", ""), before, ErrForged},
		"no signature":    {"secret", id, with("signature", ""), before, ErrForged},
		"a cut signature": {"secret", id, with("signature", query.Get("signature")[1:]), before, ErrForged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := Verify([]byte(test.secret), test.id, test.query, test.now); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if !Signed(test.query) {
				t.Error("the query is not taken for that of a link")
			}
		})
	}
	if Signed(url.Values{"expires": {later}}) {
		t.Error("a query without a signature is taken for that of a link")
	}
}

func TestCheckBase(t *testing.T) {
	t.Parallel()
	for _, valid := range []string{"https://example.com", "http://example.com:8080/tasks/"} {
		if err := CheckBase(valid); err != nil {
			t.Error(err)
		}
	}
	for _, raw := range []string{"", "/tasks", "ftp://example.com", "https://", "https://user@example.com", "https://example.com?a", "https://example.com#a", "https://[::1"} {
		if CheckBase(raw) == nil {
			t.Errorf("%q is accepted", raw)
		}
	}
}

func TestOriginOfHost(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"example.com": "https://example.com", "example.com:8443": "https://example.com:8443", "[::1]:80": "https://[::1]:80",
		strings.Repeat("a", maxHost): "https://" + strings.Repeat("a", maxHost), strings.Repeat("a", maxHost+1): "",
		"": "", "user@example.com": "", "example.com/tasks": "", "example.com?a": "", "a b": "", "[::1": "",
	} {
		if got := Origin("https", host); got != want {
			t.Errorf("%q becomes %q, want %q", host, got, want)
		}
	}
}
