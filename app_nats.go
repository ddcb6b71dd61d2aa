package callback

import (
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/caddyserver/caddy/v2"
)

// NATSOptions name an existing JetStream cluster.
type NATSOptions struct {
	// The URLs of its servers: `nats://host:4222` or, encrypted,
	// `tls://host:4222`. A user and password, or a token, may stand before the host.
	// Placeholders such as `{env.NATS_LOGIN}` expand. Required.
	URLs []string `json:"urls"`

	// A NATS credentials file. Default: none.
	Credentials string `json:"credentials,omitempty"`

	// On how many servers each stream is kept. Default: `3`.
	Replicas int `json:"replicas,omitempty"`
}

// provision expands placeholders: a password need not stand in the configuration.
func (o *NATSOptions) provision() {
	repl := caddy.NewReplacer()
	o.Credentials = repl.ReplaceKnown(o.Credentials, "")
	urls := make([]string, 0, len(o.URLs))
	for _, raw := range o.URLs {
		urls = append(urls, repl.ReplaceKnown(raw, ""))
	}
	o.URLs = urls
}

func (o *NATSOptions) validate() error {
	switch {
	case len(o.URLs) == 0:
		return errors.New("nats: no URL")
	case o.Replicas < 0:
		return fmt.Errorf("nats: replicas: %d is negative", o.Replicas)
	}
	return checkNATS(o.URLs)
}

// checkNATS checks the URLs of servers. Its error does not name the bad one: it may
// hold a password.
func checkNATS(urls []string) error {
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return errors.New("nats takes URLs such as nats://host:4222")
		}
	}
	return nil
}
