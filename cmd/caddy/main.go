// Command caddy is Caddy with the callback module, like a build by xcaddy. With it, a
// checkout needs only Go.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddy-callback/caddy-callback"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() {
	caddycmd.Main()
}
