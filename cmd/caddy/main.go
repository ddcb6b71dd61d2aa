// Command caddy is Caddy with the callback module built in: what xcaddy
// would write, kept here so that a checkout runs with Go alone.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddy-callback/caddy-callback"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() {
	caddycmd.Main()
}
