package integration

import (
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

func TestCallbackBeforeAuthenticationIsLogged(t *testing.T) {
	t.Parallel()
	const auth = "basic_auth {\nbob $2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG\n}\n"
	const warning = "callback runs before authentication"
	for name, c := range map[string]struct {
		site string
		want bool
	}{
		"authentication in a handle":           {"callback\nhandle /a* {\n" + auth + "respond ok\n}", true},
		"in a nested handle":                   {"callback\nhandle {\nroute {\n" + auth + "respond ok\n}\n}", true},
		"after it in a route":                  {"route {\ncallback\n" + auth + "respond ok\n}", true},
		"in one block":                         {"callback\n" + auth + "respond ok", false},
		"before it in a route":                 {"route {\n" + auth + "callback\nrespond ok\n}", false},
		"in another handle":                    {"handle /a* {\n" + auth + "respond ok\n}\nhandle {\ncallback\nrespond ok\n}", false},
		"in another handle after it":           {"handle /a* {\ncallback\nrespond ok\n}\nhandle {\n" + auth + "respond ok\n}", false},
		"forward_auth in a handle":             {"callback\nhandle /a* {\nforward_auth 127.0.0.1:9 {\nuri /check\n}\nrespond ok\n}", true},
		"a proxy in a handle":                  {"callback\nhandle /a* {\nreverse_proxy 127.0.0.1:9\n}", false},
		"in the block of a queue":              {"task_queue /a q {\n" + auth + "respond ok\n}", true},
		"in that of a queue without callbacks": {"task_queue /a q {\ncallback off\n" + auth + "respond ok\n}", false},
		"before a queue":                       {auth + "task_queue /a q {\nrespond ok\n}", false},
		"where requests name no URL":           {"callback http://127.0.0.1:9/ {\nfrom none\n}\nhandle /a* {\n" + auth + "respond ok\n}", false},
		"where requests name URLs as they are": {"callback http://127.0.0.1:9/\nhandle /a* {\n" + auth + "respond ok\n}", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.Start(t, "", c.site)
			if n := strings.Count(g.Log.String(), warning); (n == 1) != c.want || n > 1 {
				t.Errorf("it is warned of %d times", n)
			}
		})
	}
}
