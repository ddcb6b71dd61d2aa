package safedial_test

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
)

func TestCheckURLAccepts(t *testing.T) {
	t.Parallel()
	var policy safedial.Policy
	for _, raw := range []string{
		"https://c.example/hook",
		"http://c.example",
		"HTTPS://C.Example/hook?a=b&c=d#e",
		"https://c.example:443/",
		"https://c.example:/", // an empty port is the scheme's (RFC 3986, section 6.2.3)
		"https://c.example./",
		"https://bücher.example/",
		"https://xn--bcher-kva.example/",
		"https://例え.テスト/",
		"https://hooks_internal/",
		"https://3com.example/",
		"https://1.2.3.4.example/",
		"https://0x7f.example/",
		"https://0xyz/",
		"https://notlocalhost/",
		"https://localhost.example/",
		"https://８.８.８.８/", // net/http makes 8.8.8.8 of it
		"https://c.example/" + strings.Repeat("x", 2048-len("https://c.example/")),
	} {
		assertPermitted(t, &policy, raw)
	}
}

func TestCheckURLErrors(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, url, want string }{
		{"an empty URL", "", "not an http or https URL"},
		{"a path", "/hook", "not an http or https URL"},
		{"a URL without scheme", "//c.example/", "not an http or https URL"},
		{"a file", "file:///etc/passwd", "not an http or https URL"},
		{"a gopher", "gopher://c.example:70/_x", "not an http or https URL"},
		{"no host", "http:///hook", "has no host"},
		{"port without a host", "http://:80/", "has no host"},
		{"an opaque URL", "http:c.example/hook", "has no host"},
		{"host is a dot", "http://./", "has no host"},
		{"a user", "http://u@c.example/", "has a user name or password"},
		{"a password", "http://u:secret@c.example/", "has a user name or password"},
		{"an empty userinfo", "http://@c.example/", "has a user name or password"},
		{"a host disguised as a user", "http://c.example@10.0.0.1/", "has a user name or password"},
		{"one byte too long", "http://c.example/" + strings.Repeat("x", 2048-len("http://c.example/")+1), "longer than 2048 bytes"},
		{"host too long", "http://" + strings.Repeat("a.", 127) + "aa/", "has a host longer than 253 bytes"},
		{"label too long", "http://" + strings.Repeat("a", 64) + ".example/", "has a host with a part longer than 63 bytes"},
		{"query too long when encoded", "http://c.example/?" + strings.Repeat("ü", 1000), "longer than 2048 bytes"},
		{"a space at the end", "http://c.example/hook ", "has space around it"},
		{"a space at the beginning", " http://c.example/hook", "has space around it"},
		{"a no-break space at the end", "http://c.example/hook\u00a0", "has space around it"},
		{"a line break", "http://c.example/\r\nX: y", "has a control or invalid character"},
		{"a control character of Latin-1", "http://c.example/\u0085", "has a control or invalid character"},
		{"bytes that are not text", "http://c.example/\xff", "has a control or invalid character"},
		{"a password with a slash", "http://u:sec/ret@c.example/", "not a valid URL"},
		{"invalid escape", "http://c.example/%zz?token=secret", "not a valid URL"},
		{"a space in the host", "http://c .example/", "not a valid URL"},
		{"a backslash", `http://c.example\@10.0.0.1/`, "not a valid URL"},
		{"a port in words", "http://c.example:http/", "not a valid URL"},
		{"two ports", "http://c.example:80:80/", "not a valid URL"},
		{"a negative port", "http://c.example:-1/", "not a valid URL"},
		{"port 0", "http://c.example:0/", "has a bad port"},
		{"port above 65535", "http://c.example:65536/", "has a bad port"},
		{"a port that wraps to 80", "http://c.example:4294967376/", "has a bad port"},
		{"port with a leading zero", "http://c.example:080/", "has a bad port"},
		{"a host with a percent sign", "http://c%25.example/", "has an invalid character in its host"},
		{"a list of hosts", "http://a.example,b.example/", "has an invalid character in its host"},
		{"a full-width slash in the host", "http://c.example／.d.example/", "has an invalid character in its host"},
		{"a full-width colon in the host", "http://：：1/", "has an invalid character in its host"},
		{"an empty label", "http://c..example/", "has a host with an empty part"},
		{"an empty first label", "http://.example/", "has a host with an empty part"},
		{"two dots at the end", "http://c.example../", "has a host with an empty part"},

		{"a literal", "http://10.0.0.1/?token=secret", "host 10.0.0.1 is a private address"},
		{"a mapped literal", "http://[::ffff:127.0.0.1]/", "host ::ffff:127.0.0.1 is a loopback address"},
		{"a mapped literal in hexadecimal", "http://[::ffff:7f00:1]/", "host ::ffff:127.0.0.1 is a loopback address"},
		{"an IPv6 literal written out", "http://[0:0:0:0:0:0:0:1]/", "host ::1 is not a public address"},
		{"a zone", "http://[fe80::1%25eth0]/", "host fe80::1%eth0 is an address with a zone"},
		{"a zone on a public address", "http://[2606:4700::1%25eth0]/", "host 2606:4700::1%eth0 is an address with a zone"},
		{"an address in decimal", "http://2130706433/", "has an address in a form that is not accepted"},
		{"an address in octal", "http://0177.0.0.1/", "has an address in a form that is not accepted"},
		{"an address in hexadecimal", "http://0x7f000001/", "has an address in a form that is not accepted"},
		{"a part in hexadecimal", "http://127.0.0.0X1/", "has an address in a form that is not accepted"},
		{"a zero in hexadecimal", "http://127.0.0.0x/", "has an address in a form that is not accepted"},
		{"a short address", "http://127.1/", "has an address in a form that is not accepted"},
		{"a zero", "http://0/", "has an address in a form that is not accepted"},
		{"an address of five parts", "http://127.0.0.0.1/", "has an address in a form that is not accepted"},
		{"an address with a part too large", "http://256.0.0.1/", "has an address in a form that is not accepted"},
		{"an address with a dot at its end", "http://127.0.0.1./", "has an address in a form that is not accepted"},
		{"public address with a dot", "http://8.8.8.8./", "has an address in a form that is not accepted"},
		{"full-width digits", "http://１２７.０.０.１/", "host 127.0.0.1 is a loopback address"},
		{"full-width digits, escaped", "http://%EF%BC%91%EF%BC%92%EF%BC%97.0.0.1/", "host 127.0.0.1 is a loopback address"},
		{"ideographic stops", "http://127。0．0｡1/", "host 127.0.0.1 is a loopback address"},
		{"a soft hyphen", "http://127.0.0.\u00ad1/", "host 127.0.0.1 is a loopback address"},
		{"digits in circles", "http://①②⑦.⓪.⓪.①/", "host 127.0.0.1 is a loopback address"},
		{"digits of mathematics", "http://𝟏𝟐𝟕.𝟎.𝟎.𝟏/", "host 127.0.0.1 is a loopback address"},
		{"a name that IDNA refuses", "http://\u0301.example/", "has an invalid character in its host"},
		{"localhost", "http://localhost/", "host localhost is this machine"},
		{"localhost in capitals", "http://LOCALHOST/", "host localhost is this machine"},
		{"localhost with a dot", "http://localhost./", "host localhost is this machine"},
		{"a name below localhost", "http://a.b.LocalHost./", "host a.b.localhost is this machine"},
		{"localhost in full-width letters", "http://ｌｏｃａｌｈｏｓｔ/", "host localhost is this machine"},
		{"port not allowed", "http://c.example:22/", "port 22 is not allowed"},
	}
	var policy safedial.Policy
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u, err := policy.CheckURL(tt.url)
			if err == nil || err.Error() != tt.want {
				t.Fatalf("got  %v\nwant %s", err, tt.want)
			}
			if u != nil {
				t.Errorf("a URL came with the error: %v", u)
			}
		})
	}
}

func TestHostNameLength(t *testing.T) {
	t.Parallel()
	label := strings.Repeat("a", 63) + "."
	for _, tt := range []struct {
		length int
		dot    string // at the end of the name
		taken  bool
	}{
		{252, "", true}, {253, "", true}, {253, ".", true},
		{254, "", false}, {254, ".", false}, {255, "", false}, {256, "", false}, {257, "", false},
	} {
		t.Run(fmt.Sprint(tt.length, tt.dot), func(t *testing.T) {
			t.Parallel()
			name := (strings.Repeat(label, 4) + "aaaaaaaa")[:tt.length]
			if name[tt.length-1] == '.' {
				name = "a" + name[:tt.length-2] + "a"
			}
			var policy safedial.Policy
			u, err := policy.CheckURL("http://" + name + tt.dot + "/")
			switch {
			case tt.taken && err != nil:
				t.Errorf("it is refused: %v", err)
			case tt.taken && safedial.HostPort(u) != name+":80":
				t.Errorf("the host is %s", safedial.HostPort(u))
			case !tt.taken && (err == nil || err.Error() != "has a host longer than 253 bytes"):
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestHostLabelLength(t *testing.T) {
	t.Parallel()
	for _, name := range []string{strings.Repeat("a", 63) + ".example", "c." + strings.Repeat("a", 63), strings.Repeat("ü", 40) + ".example"} {
		var policy safedial.Policy
		if _, err := policy.CheckURL("https://" + name + "/"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseHostPort(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"c.example:443": "c.example:443", "C.Example.:80": "c.example:80", "bücher.example:80": "xn--bcher-kva.example:80", "10.0.0.1:8080": "10.0.0.1:8080", "[::1]:80": "[::1]:80",
		"c.example": "", "c.example:": "", "c.example:99999": "", "c.example:0": "", "c.example:x": "", ":443": "", "": "",
		"c..example:443": "", "u@c.example:443": "", "c.example:443/": "", "c.example:443?a": "", "a b:443": "", "127.1:443": "", "::1:80": "",
	} {
		if got, err := safedial.ParseHostPort(raw); got != want || (err == nil) != (want != "") {
			t.Errorf("%q is %q, not %q: %v", raw, got, want, err)
		}
	}
}

func TestCheckURLNormalizes(t *testing.T) {
	t.Parallel()
	var policy safedial.Policy
	for _, tt := range []struct{ raw, want string }{
		{"http://c.example/p?name=John Smith", "http://c.example/p?name=John%20Smith"},
		{"http://c.example/p?name=Jürgen", "http://c.example/p?name=J%C3%BCrgen"},
		{"http://c.example/p?name=J%C3%BCrgen+x%20y", "http://c.example/p?name=J%C3%BCrgen+x%20y"},
		{`http://c.example/p?a[]=<"1">&b={x|y}^\` + "`z`", "http://c.example/p?a%5B%5D=%3C%221%22%3E&b=%7Bx%7Cy%7D%5E%5C%60z%60"},
		{"http://c.example/p?rate=100%&x=%zz&y=%4", "http://c.example/p?rate=100%25&x=%25zz&y=%254"},
		{"http://c.example/p?a=b/c?d:e@f;g,h!$'()*~", "http://c.example/p?a=b/c?d:e@f;g,h!$'()*~"},
		{"http://c.example/a b/ü|x", "http://c.example/a%20b/%C3%BC%7Cx"},
		{"http://c.example/a%2Fb", "http://c.example/a%2Fb"},
		{"http://c.example/p?q=1#frag ment", "http://c.example/p?q=1"},
		{"http://c.example/p?", "http://c.example/p?"},
	} {
		u, err := policy.CheckURL(tt.raw)
		if err != nil || u.String() != tt.want {
			t.Errorf("%s is %v, %v; want %s", tt.raw, u, err, tt.want)
		} else if again, err := policy.CheckURL(u.String()); err != nil || again.String() != tt.want {
			t.Errorf("%s is %v, %v the second time", tt.want, again, err)
		}
	}
}

func TestHostPortNormalizesSpellings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		want string
		urls []string
	}{
		{"c.example:80", []string{"http://c.example", "http://C.EXAMPLE:80/x", "http://c.example.:/", "http://ｃ.example"}},
		{"c.example:443", []string{"https://c.example", "http://c.example:443"}},
		{"xn--bcher-kva.example:443", []string{"https://xn--bcher-kva.example", "https://bücher.example", "https://BÜCHER.example.", "https://b%C3%BCcher.example"}},
		{"8.8.8.8:443", []string{"https://8.8.8.8", "https://[::ffff:8.8.8.8]:443", "https://８.８.８.８"}},
		{"[2606:4700::1]:443", []string{"https://[2606:4700::1]", "https://[2606:4700:0:0:0:0:0:1]:443/"}},
	}
	var policy safedial.Policy
	for _, tt := range tests {
		for _, raw := range tt.urls {
			u, err := policy.CheckURL(raw)
			if err != nil {
				t.Errorf("%s: %v", raw, err)
				continue
			}
			if got := safedial.HostPort(u); got != tt.want {
				t.Errorf("%s: got %s, want %s", raw, got, tt.want)
			}
		}
	}
}

func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{
		"https://c.example/hook", "http://10.0.0.1/", "http://[::ffff:127.0.0.1]:80/", "http://[fe80::1%25eth0]/",
		"http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://１２７。０.０.１/", "http://localhost./",
		"http://u:p@c.example/", "http://c.example:0/", "http://%EF%BC%91/", "http:c", "http://[::1", "\x00", "http://.\u00ad./",
		"http://%C2%800000", "http://a%FF/",
	} {
		f.Add(seed)
	}
	var policy safedial.Policy
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := policy.CheckURL(raw)
		if err != nil {
			if u != nil {
				t.Fatalf("%q: a URL came with the error %v", raw, err)
			}
			return
		}
		host := u.Hostname()
		switch {
		case len(raw) > 2048, u.Scheme != "http" && u.Scheme != "https", host == "", u.User != nil:
			t.Fatalf("%q passed", raw)
		case u.Port() != "" && u.Port() != "80" && u.Port() != "443":
			t.Fatalf("%q passed with port %s", raw, u.Port())
		}
		if addr, err := netip.ParseAddr(host); err == nil {
			addr = addr.Unmap()
			if addr.Zone() != "" || addr.IsPrivate() || !addr.IsGlobalUnicast() {
				t.Fatalf("%q passed with address %s", raw, addr)
			}
			// A judgement must not depend on how the address is written.
			if _, err := policy.CheckURL(urlOf(addr)); err != nil {
				t.Fatalf("%q passed, %s not: %v", raw, urlOf(addr), err)
			}
		}
		if strings.ContainsFunc(u.RequestURI(), func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
			t.Fatalf("%q has the request target %q", raw, u.RequestURI())
		}
		// Every parser must see the URL that was checked.
		again, err := url.Parse(u.String())
		if err != nil || again.Host != u.Host || safedial.HostPort(again) != safedial.HostPort(u) {
			t.Fatalf("%q is %v, then %v (%v)", raw, u, again, err)
		}
		if _, err := policy.CheckURL("http://" + safedial.HostPort(u) + "/"); err != nil {
			t.Fatalf("%q passed, its %s not: %v", raw, safedial.HostPort(u), err)
		}
	})
}
