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
		"authentication in a handle":   {"callback\nhandle /a* {\n" + auth + "respond ok\n}", true},
		"in a nested handle":           {"callback\nhandle {\nroute {\n" + auth + "respond ok\n}\n}", true},
		"after it in a route":          {"route {\ncallback\n" + auth + "respond ok\n}", true},
		"in one block":                 {"callback\n" + auth + "respond ok", false},
		"before it in a route":         {"route {\n" + auth + "callback\nrespond ok\n}", false},
		"in another handle":            {"handle /a* {\n" + auth + "respond ok\n}\nhandle {\ncallback\nrespond ok\n}", false},
		"in another handle after it":   {"handle /a* {\ncallback\nrespond ok\n}\nhandle {\n" + auth + "respond ok\n}", false},
		"forward_auth in a handle":     {"callback\nhandle /a* {\nforward_auth 127.0.0.1:9 {\nuri /check\n}\nrespond ok\n}", true},
		"a proxy in a handle":          {"callback\nhandle /a* {\nreverse_proxy 127.0.0.1:9\n}", false},
		"in the block of a queue":      {"task_queue /a q {\n" + auth + "respond ok\n}", true},
		"in a queue without callbacks": {"task_queue /a q {\ncallback off\n" + auth + "respond ok\n}", false},
		"before a queue":               {auth + "task_queue /a q {\nrespond ok\n}", false},
		"requests name no URL":         {"callback http://127.0.0.1:9/ {\nfrom none\n}\nhandle /a* {\n" + auth + "respond ok\n}", false},
		"requests may name URLs":       {"callback http://127.0.0.1:9/\nhandle /a* {\n" + auth + "respond ok\n}", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.Start(t, "", c.site)
			if c.want {
				logs(g, warning) // the output may come after the first response
			}
			if n := strings.Count(g.Log.String(), warning); (n == 1) != c.want || n > 1 {
				t.Errorf("it is warned of %d times", n)
			}
		})
	}
}

func TestQueueThatCannotBePolledIsLogged(t *testing.T) {
	t.Parallel()
	const queue = "task_queue q {\nrespond ok\n}\n"
	const warning = "clients cannot poll the queue"
	for name, c := range map[string]struct {
		site string
		want bool
	}{
		"a path of the queue":          {"task_queue /train q {\nrespond ok\n}", false},
		"every request":                {queue, false},
		"a handle with one path":       {"handle /train {\n" + queue + "}", true},
		"a route in a handle":          {"handle /train {\nroute {\n" + queue + "}\n}", true},
		"a handle with paths":          {"@q path /train /train/*\nhandle @q {\n" + queue + "}", false},
		"a handle_path":                {"handle_path /train/* {\n" + queue + "}", false},
		"a matcher with one path":      {"@q path /train\ntask_queue @q q {\nrespond ok\n}", true},
		"a matcher with paths":         {"@q path /train /train/*\ntask_queue @q q {\nrespond ok\n}", false},
		"POST alone":                   {"@q method POST\ntask_queue @q q {\nrespond ok\n}", true},
		"POST, GET and DELETE":         {"@q method POST GET DELETE\ntask_queue @q q {\nrespond ok\n}", false},
		"a matcher of a header":        {"@q header X-Queue *\ntask_queue @q q {\nrespond ok\n}", false},
		"another handle with one path": {"handle /other {\nrespond ok\n}\nhandle {\n" + queue + "}", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := gatewaytest.Start(t, "", c.site)
			if c.want {
				logs(g, warning) // the output may come after the first response
			}
			if n := strings.Count(g.Log.String(), warning); (n == 1) != c.want || n > 1 {
				t.Errorf("it is warned of %d times", n)
			}
		})
	}
}
