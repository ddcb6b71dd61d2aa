package callback

import (
	"strings"
	"testing"
)

func TestTheNameOfAFunctionIsWhatItsPathSays(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"/async-function/figlet":                         "figlet",
		"/function/figlet/":                              "figlet",
		"/function/figlet.openfaas-fn/a/b":               "figlet.openfaas-fn",
		"/function/":                                     "",
		"/function/..":                                   "",
		"/function/./x":                                  "",
		"/async-function/...":                            "",
		"/function/..a":                                  "..a",
		"/function":                                      "",
		"/functions/figlet":                              "",
		"/v1/function/figlet":                            "",
		"/function/<script>alert(1)</script>":            "",
		"/function/fig\nlet":                             "",
		"/function/fig\u202elet":                         "",
		"/function/" + strings.Repeat("f", 128):          strings.Repeat("f", 128),
		"/async-function/" + strings.Repeat("f", 129):    "",
		"/async-function/figlet\x1b[31m":                 "",
		"/async-function//function/figlet":               "",
		"/async-function/async-function/function/figlet": "async-function",
	} {
		if got := functionOf(path); got != want {
			t.Errorf("%q calls %q, not %q", path, got, want)
		}
	}
}

func FuzzTheNameOfAFunctionCanStandInAHeader(f *testing.F) {
	for _, path := range []string{"/function/figlet", "/async-function/figlet.openfaas-fn/a", "/function/a\r\nb", "/function/\u202e", "/"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		name := functionOf(path)
		if name == "" {
			return
		}
		rest := strings.TrimPrefix(strings.TrimPrefix(path, functionPath), asyncFunctionPath)
		if !isToken(name) || len(name) > maxFunctionName || !strings.HasPrefix(rest+"/", name+"/") {
			t.Errorf("%q calls %q", path, name)
		}
	})
}
