package callback

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddy-callback/caddy-callback/internal/alert"
	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/dispatch"
	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/safedial"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/tracing"
	"github.com/caddy-callback/caddy-callback/internal/webhook"
)

// Delivery configures how and where callbacks are delivered.
type Delivery struct {
	// How long one attempt may take, from connecting to the last byte of the response.
	// Default: `20s`.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The waits between attempts. There is one more attempt than there are waits. Each
	// wait is lengthened by up to a fifth, at most 15 minutes, so that callbacks that
	// failed together are not retried together. Default: `5s 30s 2m 10m 30m 2h 5h 10h 14h
	// 20h 24h`.
	Retry []caddy.Duration `json:"retry,omitempty"`

	// The keys that sign callbacks according to Standard Webhooks: `whsec_…`
	// (HMAC-SHA256) or `whsk_…` (ed25519). Every key signs, so that keys can be rotated.
	// Placeholders such as `{env.KEY}` expand. Default: none; callbacks are not signed.
	Secret []string `json:"secret,omitempty"`

	// A text with placeholders, such as `{http.auth.user.id}`, that identifies the
	// receiver of a callback. It expands when a task is accepted. Callbacks are signed
	// with keys derived from each secret and the value. A receiver gets the key of its
	// value from `caddy callback key <value>`, and with it can neither verify nor forge
	// callbacks of other values. Default: none; the secrets themselves sign.
	DeriveKeys string `json:"derive_keys,omitempty"`

	// Destinations that a request may name although they are not public: CIDRs, addresses
	// or host names. Placeholders such as `{env.HOSTS}` expand. Default: none.
	Allow []string `json:"allow,omitempty"`

	// Destinations that are refused, even if allowed or the operator's own.
	// Placeholders expand. Default: none.
	Deny []string `json:"deny,omitempty"`

	// The ports that a request may name; `any` permits all. Placeholders expand. Default:
	// `80 443`.
	Ports []string `json:"ports,omitempty"`

	// PEM files with certificates of authorities that are trusted in addition to the
	// system's, for receivers with a private CA. They are read when the configuration is
	// loaded. Default: none.
	TrustedCA []string `json:"trusted_ca,omitempty"`

	// How many attempts run at once to hosts that usually answer within 100 ms. Default:
	// `256`.
	Concurrency int `json:"concurrency,omitempty"`

	// How many attempts run at once to all other hosts, in addition to those. Default:
	// `768`.
	Slow int `json:"slow,omitempty"`

	// How many attempts run at once to one host and port. Default: `32`.
	PerHost int `json:"per_host,omitempty"`

	// How many attempts to one host and port may start in a period, evenly spread:
	// `10/1s`, or `600/1m` for the same rate. Each gateway counts its own. Default: none;
	// the other limits hold.
	Rate string `json:"rate,omitempty"`

	// How long a host may fail before its deliveries are paused, as an operator can pause
	// them: from the first failed attempt to a later one without a success between them.
	// Default: none; failing hosts are not paused.
	PauseAfter caddy.Duration `json:"pause_after,omitempty"`

	policy  *safedial.Policy // for URLs from requests
	trusted *safedial.Policy // for the operator's URLs
	keys    []webhook.Key
	every   time.Duration // between attempts to one host; 0 if there is no rate
	tls     *tls.Config
}

// Defaults of the delivery.
const (
	defaultAttemptTimeout = 20 * time.Second
	defaultConcurrency    = dispatch.DefaultConcurrency
	defaultSlow           = dispatch.DefaultSlow
	defaultPerHost        = dispatch.DefaultPerHost
)

// minWindow keeps callbacks with a short retry schedule through an outage of the gateway.
const minWindow = time.Hour

var defaultRetry = []caddy.Duration{
	caddy.Duration(5 * time.Second), caddy.Duration(30 * time.Second), caddy.Duration(2 * time.Minute),
	caddy.Duration(10 * time.Minute), caddy.Duration(30 * time.Minute), caddy.Duration(2 * time.Hour),
	caddy.Duration(5 * time.Hour), caddy.Duration(10 * time.Hour), caddy.Duration(14 * time.Hour),
	caddy.Duration(20 * time.Hour), caddy.Duration(24 * time.Hour),
}

func (o *Delivery) provision() (err error) {
	setDefault(&o.Timeout, caddy.Duration(defaultAttemptTimeout))
	setDefault(&o.Concurrency, defaultConcurrency)
	setDefault(&o.Slow, defaultSlow)
	setDefault(&o.PerHost, defaultPerHost)
	if o.Retry == nil {
		o.Retry = defaultRetry
	}
	for _, words := range []*[]string{&o.Secret, &o.Allow, &o.Deny, &o.Ports, &o.TrustedCA} {
		expandAll(words)
	}
	for _, secret := range o.Secret {
		key, err := webhook.ParseKey(secret)
		if err != nil {
			return fmt.Errorf("delivery: secret: %w", err)
		}
		o.keys = append(o.keys, key)
	}
	o.policy, err = safedial.NewPolicy(safedial.Config{Allow: o.Allow, Deny: o.Deny, Ports: o.Ports})
	if err != nil {
		return fmt.Errorf("delivery: %w", err)
	}
	o.trusted = o.policy.Trusted()
	if o.every, err = parseRate(o.Rate); err != nil {
		return fmt.Errorf("delivery: rate: %w", err)
	}
	o.tls = new(tls.Config)
	if o.tls.RootCAs, err = certPool(o.TrustedCA); err != nil {
		return fmt.Errorf("delivery: trusted_ca: %w", err)
	}
	return nil
}

// window is how long after its verdict a callback may be delivered: one and a half
// times the retry schedule.
func (o *Delivery) window() time.Duration {
	var total time.Duration
	for _, wait := range o.Retry {
		total += time.Duration(wait)
	}
	return max(total+total/2, minWindow)
}

// certPool returns a pool of the system's authorities and those in the files, or nil if
// there are no files.
func certPool(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a container without certificates
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("%s has no certificate in PEM form", file)
		}
	}
	return pool, nil
}

var errNoSecret = errors.New("delivery: derive_keys: there is no secret to derive keys from; add one with secret")

func (o *Delivery) validate() error {
	switch {
	case o.DeriveKeys != "" && len(o.keys) == 0:
		return errNoSecret
	case o.DeriveKeys != "" && !hasPlaceholder(o.DeriveKeys):
		return fmt.Errorf("delivery: derive_keys: %q has no placeholder, so all receivers would have one key", o.DeriveKeys)
	case o.PauseAfter < 0:
		return fmt.Errorf("delivery: pause_after: %v is negative", time.Duration(o.PauseAfter))
	case o.Timeout < 0:
		return fmt.Errorf("delivery: timeout: %v is negative", time.Duration(o.Timeout))
	case o.Concurrency < 1:
		return fmt.Errorf("delivery: concurrency: %d is less than 1", o.Concurrency)
	case o.Slow < 1:
		return fmt.Errorf("delivery: slow: %d is less than 1", o.Slow)
	case o.PerHost < 1:
		return fmt.Errorf("delivery: per_host: %d is less than 1", o.PerHost)
	}
	for _, wait := range o.Retry {
		if wait <= 0 {
			return fmt.Errorf("delivery: retry: a wait of %v is not positive", time.Duration(wait))
		}
	}
	return nil
}

// keyFor returns the value that the signing keys of a task's callback are derived from,
// or nil if keys are not derived. repl has the placeholders of the request.
func (o *Delivery) keyFor(repl *caddy.Replacer) *string {
	if o.DeriveKeys == "" {
		return nil
	}
	value := repl.ReplaceAll(o.DeriveKeys, "")
	return &value
}

// newDeliveryOptions returns the delivery options of this generation.
func (a *App) newDeliveryOptions() *deliver.Options {
	o := a.Delivery
	waits := make([]time.Duration, len(o.Retry))
	for i, wait := range o.Retry {
		waits[i] = time.Duration(wait)
	}
	sender := send.New(send.Options{
		Timeout: time.Duration(o.Timeout), Policy: o.policy, Trusted: o.trusted, TLS: o.tls, Keys: o.keys,
		UserAgent: "caddy-callback/" + Version, PerHost: o.PerHost,
		Dropped: func(id, name string) {
			if c := a.log.Check(zap.DebugLevel, "callback header dropped"); c != nil {
				c.Write(zap.String("task_id", id), zap.String("header", name))
			}
		},
	})
	return &deliver.Options{
		Sender: sender, Limits: dispatch.Limits{Concurrency: o.Concurrency, Slow: o.Slow, PerHost: o.PerHost, Interval: o.every},
		Retry: waits, Window: o.window(), PauseAfter: time.Duration(o.PauseAfter), Log: a.log, Observer: attemptObserver{a},
	}
}

// attemptObserver records the attempts of a generation in its metrics, traces and events.
type attemptObserver struct{ app *App }

// Begin implements [deliver.Observer].
func (o attemptObserver) Begin(ctx context.Context, rec *task.Record, req *http.Request, at time.Time) trace.Span {
	o.app.hopKey(ctx).Set(req.Header, req.URL)
	return o.app.tracing.tracer.StartAttempt(rec, req, at)
}

// End implements [deliver.Observer].
func (o attemptObserver) End(rec *task.Record, outcome deliver.Outcome, ans *send.Answer, span trace.Span) {
	tracing.EndAttempt(span, ans, outcome)
	if outcome != "" {
		o.app.metrics.Attempted(rec, outcome, ans.At, ans.Took)
	}
}

// Expired implements [deliver.Observer]. The engine also calls it, for callbacks that it
// gives up itself.
func (o attemptObserver) Expired(rec *task.Record) {
	o.app.metrics.Expired()
	o.app.log.Warn("callback dead: its delivery window has ended", zap.String("task_id", rec.ID),
		zap.String("callback_host", rec.CallbackHost), zap.Int("attempts", rec.Tries))
	o.Ended(rec, deliver.Dead)
}

// Ended implements [deliver.Observer].
func (o attemptObserver) Ended(rec *task.Record, outcome deliver.Outcome) {
	events.Add(eventNames[outcome], o.app.log, func() map[string]any { return deliveryData(rec) })
	if outcome == deliver.Dead && !alert.Is(rec) {
		alerts.raise(alert.Dead, rec.CallbackHost, true, deliveryData(rec))
	}
}

// Failed implements [deliver.Observer].
func (o attemptObserver) Failed(rec *task.Record) { o.app.metrics.TaskEnded(rec) }

// HostFailed implements [deliver.Observer].
func (o attemptObserver) HostFailed(rec *task.Record, host engine.HostState, at time.Time) {
	if at.Sub(host.FailingSince) < failingFor || alert.Is(rec) {
		return
	}
	data := hostData(host)
	if alerts.raise(alert.HostFailing, host.Host, false, data) {
		events.Add(alert.HostFailing, o.app.log, func() map[string]any { return data })
	}
}

// HostPaused implements [deliver.Observer].
func (o attemptObserver) HostPaused(rec *task.Record, host engine.HostState) {
	data := hostData(host)
	events.Add(alert.HostPaused, o.app.log, func() map[string]any { return data })
	if !alert.Is(rec) {
		alerts.raise(alert.HostPaused, host.Host, true, data)
	}
}
