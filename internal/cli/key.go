package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// keyFlags are the flags of `caddy callback key` as they are given.
type keyFlags struct {
	secrets         []string
	config, adapter string
}

// NewKeyCommand returns the command that prints the keys of one receiver. load returns
// the secrets of a configuration.
func (c *Caddy) NewKeyCommand(load func(config, adapter string) ([]string, error)) *cobra.Command {
	f := new(keyFlags)
	cmd := &cobra.Command{
		Use:   "key <value> [--config <file>|--secret <key>]",
		Short: "Prints the keys that one receiver verifies with",
		Long: `
Prints the keys with which a receiver verifies its callbacks, if the delivery option
derive_keys is set: one line for each secret. The value is what derive_keys expands
to for the receiver's tasks, such as the ID of a customer.

A whsec_ key is secret: give it to this receiver only. A whpk_ key is public.

No gateway is asked. The secrets are those of the configuration, or of --secret.

Exit codes: 0 printed, 2 the command line or the configuration is wrong.`,
		Example: `  caddy callback key customer-42 --config /etc/caddy/Caddyfile
  caddy callback key customer-42 --secret {env.CALLBACK_KEY}`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return c.Misused(cmd, fmt.Errorf("expected one value, got %d", len(args)))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := f.keys(c, load)
			if err != nil {
				return c.Misused(cmd, err)
			}
			for _, key := range keys {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), key.Derive(args[0]).VerifyText()); err != nil {
					return c.Failed(cmd, err)
				}
			}
			return nil
		},
	}
	c.Flags(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&f.secrets, "secret", nil, "a secret of the delivery options, or a placeholder; repeatable")
	flags.StringVarP(&f.config, "config", "c", "", "the configuration with the secrets (default: the Caddyfile here)")
	flags.StringVarP(&f.adapter, "adapter", "a", "", "the adapter of that configuration")
	return cmd
}

// keys returns the secrets that the flags give. Its errors name the flag.
func (f *keyFlags) keys(c *Caddy, load func(config, adapter string) ([]string, error)) ([]webhook.Key, error) {
	secrets, flag := f.secrets, "--secret"
	if len(secrets) == 0 {
		flag = "--config"
		var err error
		if secrets, err = load(f.config, f.adapter); err != nil {
			return nil, fmt.Errorf("--config: %w", err)
		}
	}
	if len(secrets) == 0 {
		return nil, errors.New("--config: the delivery options have no secret")
	}
	keys := make([]webhook.Key, len(secrets))
	for i, secret := range secrets {
		key, err := webhook.ParseKey(c.Expand(secret))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		keys[i] = key
	}
	return keys, nil
}
