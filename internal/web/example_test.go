package web_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/caddy-callback/caddy-callback/internal/web"
)

func ExampleNewInbox() {
	inbox := web.NewInbox(web.InboxConfig{Keep: 100})
	server := httptest.NewUnstartedServer(inbox)
	server.Config.RegisterOnShutdown(inbox.Close) // otherwise a shutdown would wait for its pages
	server.Start()
	defer server.Close()

	answer, err := http.Post(server.URL+"/inbox/mine", "application/x-www-form-urlencoded", strings.NewReader("response=example+response"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s: %s", answer.Status, body)
	// Output: 200 OK: recorded as 1
}
