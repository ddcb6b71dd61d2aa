package callback

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/dustin/go-humanize"

	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Each of these functions returns a parser for the values of an option. Its errors name
// the option and the invalid value.

func text(field *string) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if value == "" {
			return d.Errf("%s: the value is empty", name)
		}
		*field = value
		return nil
	})
}

// placeholders reads a text that must have a placeholder. Caddy expands the short ones,
// such as {header.X}, in sites only and not in global options, so that happens here:
// one that is not known would silently be empty for every request.
func placeholders(field *string) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if !hasPlaceholder(value) {
			return d.Errf("%s: %q has no placeholder such as {http.auth.user.id}", name, value)
		}
		written := caddyfile.Segment{{Text: value}}
		httpcaddyfile.NewShorthandReplacer().ApplyToSegment(&written)
		*field = written[0].Text
		return nil
	})
}

// taskHeader parses the name of a header with a task's ID or status.
func taskHeader(field *string) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if err := checkTaskHeader(value); err != nil {
			return d.Errf("%s: %v", name, err)
		}
		*field = value
		return nil
	})
}

func duration(field *caddy.Duration) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, _ string) error { return setDuration(d, name, field) })
}

// setDuration sets field to the duration at the dispenser's position.
func setDuration(d *caddyfile.Dispenser, name string, field *caddy.Duration) error {
	value, err := caddy.ParseDuration(d.Val())
	if err != nil || value <= 0 {
		return d.Errf("%s: %q is not a positive duration such as 90s, 10m or 1d", name, d.Val())
	}
	*field = caddy.Duration(value)
	return nil
}

func count(field *int) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return d.Errf("%s: %q is not a positive whole number", name, value)
		}
		*field = n
		return nil
	})
}

func rate(field *string) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if _, err := parseRate(value); err != nil || value == "" {
			return d.Errf("%s: %q is not a rate such as 10/1s or 100/1m", name, value)
		}
		*field = value
		return nil
	})
}

// minInterval is the shortest interval that a rate may have: it is about as long as
// a timer takes.
const minInterval = 100 * time.Microsecond

// parseRate reads <n>/<duration> and returns the interval that it means, 0 for an
// empty rate.
func parseRate(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	times, in, _ := strings.Cut(s, "/")
	n, err := strconv.ParseInt(times, 10, 32)
	d, inErr := caddy.ParseDuration(in)
	if err != nil || inErr != nil || n < 1 || d <= 0 {
		return 0, fmt.Errorf("%q is not a rate such as 10/1s or 100/1m", s)
	}
	if d/time.Duration(n) < minInterval {
		return 0, fmt.Errorf("%q is more than %d in a second", s, time.Second/minInterval)
	}
	return d / time.Duration(n), nil
}

func status(field *int) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 200 || n > 599 {
			return d.Errf("%s: %q is not a status from 200 to 599", name, value)
		}
		*field = n
		return nil
	})
}

func size(field *int64) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		n, err := humanize.ParseBytes(value)
		if err != nil || n == 0 || n > maxSize {
			return d.Errf("%s: %q is not a size such as 64KiB or 8MiB, 1GiB at most", name, value)
		}
		*field = int64(n)
		return nil
	})
}

// keptSize parses the maximum size of a result in a file.
func keptSize(field *int64) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		n, err := humanize.ParseBytes(value)
		if err != nil || n == 0 || n > mostKept {
			return d.Errf("%s: %q is not a size such as 500MiB or 10GiB, 1TiB at most", name, value)
		}
		*field = int64(n)
		return nil
	})
}

// storeSize parses the maximum size of a store. The files of an empty one need the
// minimum.
func storeSize(field *int64) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		n, err := humanize.ParseBytes(value)
		if err != nil || n < minStoreSize || n > math.MaxInt64 {
			return d.Errf("%s: %q is not a size such as 500MiB or 10GiB, 64MiB at least", name, value)
		}
		*field = int64(n)
		return nil
	})
}

// durationAndCount parses a duration and an optional count.
func durationAndCount(period *caddy.Duration, n *int64) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		if args := d.CountRemainingArgs(); args < 1 || args > 2 {
			return d.Errf("%s takes a duration and an optional count, not %d values", name, args)
		}
		d.NextArg()
		if err := setDuration(d, name, period); err != nil || !d.NextArg() {
			return err
		}
		count, err := strconv.ParseInt(d.Val(), 10, 64)
		if err != nil || count < 1 {
			return d.Errf("%s: %q is not a positive whole number", name, d.Val())
		}
		*n = count
		return nil
	}
}

// onOff parses on or off.
func onOff(field **bool) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if value != "on" && value != "off" {
			return d.Errf("%s: unknown value %q; expected on or off", name, value)
		}
		on := value == "on"
		*field = &on
		return nil
	})
}

// maxSize, 1 GiB, bounds bodies that are held in memory.
const maxSize = 1 << 30

func oneOf(field *string, allowed ...string) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if !slices.Contains(allowed, value) {
			return d.Errf("%s: unknown value %q; expected one of %s", name, value, strings.Join(allowed, ", "))
		}
		*field = value
		return nil
	})
}

// secrets parses keys. Keys with placeholders are checked after expansion.
func secrets(field *[]string, parse func(string) (webhook.Key, error)) func(*caddyfile.Dispenser) error {
	return words(field, func(values []string) error {
		for i, value := range values {
			if hasPlaceholder(value) {
				continue
			}
			if _, err := parse(value); err != nil {
				return fmt.Errorf("secret: key %d: %w", i+1, err) // never the key itself
			}
		}
		return nil
	})
}

// ownURL parses a URL of the operator.
func ownURL(field *string) func(*caddyfile.Dispenser) error {
	return one(func(d *caddyfile.Dispenser, name, value string) error {
		if err := checkOwnURL(value); err != nil {
			return d.Errf("%s: bad URL: %v", name, err)
		}
		*field = value
		return nil
	})
}

// checkOwnURL returns an error if a URL cannot be the operator's own. The delivery
// options decide whether its address is allowed. A placeholder is checked after it
// expands.
func checkOwnURL(raw string) error {
	if hasPlaceholder(raw) {
		return nil
	}
	_, err := new(safedial.Policy).Trusted().CheckURL(raw)
	return err
}

// checkPolicy checks the values of one option. Its error names the option.
func checkPolicy(c safedial.Config) error {
	_, err := safedial.NewPolicy(c)
	return err
}

// parseBare parses a directive that takes nothing but a matcher.
func parseBare(d *caddyfile.Dispenser, directive string) error {
	d.Next() // its name
	if d.NextArg() {
		return d.Errf("%s takes no value; unexpected %q", directive, d.Val())
	}
	if d.NextBlock(0) {
		return d.Errf("%s has no options; unexpected %q", directive, d.Val())
	}
	return nil
}

// one parses the single value of an option.
func one(set func(d *caddyfile.Dispenser, name, value string) error) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		args := d.CountRemainingArgs()
		if args != 1 {
			return d.Errf("%s takes one value, not %d", name, args)
		}
		d.NextArg()
		return set(d, name, d.Val())
	}
}

// words parses one or more values.
func words(field *[]string, check func([]string) error) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		values := d.RemainingArgs()
		if len(values) == 0 {
			return d.Errf("%s takes one or more values", name)
		}
		if slices.Contains(values, "") {
			return d.Errf("%s: a value is empty", name)
		}
		if err := check(values); err != nil {
			return d.WrapErr(err)
		}
		*field = values
		return nil
	}
}

// placeholder matches placeholders of Caddy's replacer, but not JSON in braces.
var placeholder = regexp.MustCompile(`\{[A-Za-z_$][A-Za-z0-9_$.:/*<>=-]*\}`)

// hasPlaceholder reports whether a value contains a placeholder.
func hasPlaceholder(value string) bool { return placeholder.MatchString(value) }

// known returns the values without placeholders.
func known(values []string) []string {
	return slices.DeleteFunc(slices.Clone(values), hasPlaceholder)
}

// expand expands placeholders that need no request, such as {env.NAME}, in each field.
func expand(fields ...*string) {
	repl := caddy.NewReplacer()
	for _, field := range fields {
		*field = repl.ReplaceKnown(*field, "")
	}
}

// expandAll is expand for a list. It replaces the list instead of changing it.
func expandAll(values *[]string) {
	*values = slices.Clone(*values)
	for i := range *values {
		expand(&(*values)[i])
	}
}
