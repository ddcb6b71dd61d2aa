// Package observability tests examples/observability with Prometheus itself: the
// dashboard's queries are valid PromQL, and each alert fires when it should.
package observability

import (
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
)

const folder = "../../examples/observability/"

var (
	promQL = parser.NewParser(parser.Options{})
	silent = slog.New(slog.DiscardHandler)
)

func TestPrometheusConfigurationIsValid(t *testing.T) {
	t.Parallel()
	cfg, err := config.LoadFile(folder+"prometheus.yml", false, silent)
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.RuleFiles) != 1 || len(cfg.ScrapeConfigs) != 1 {
		t.Errorf("the configuration has the rules %q and %d jobs", cfg.RuleFiles, len(cfg.ScrapeConfigs))
	}
}

func TestDashboardQueriesAreValid(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(folder + "dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	// Grafana replaces these variables.
	variables := strings.NewReplacer("$__rate_interval", "1m", "$job", ".*", "$queue", ".*")
	for _, panel := range dashboard.Panels {
		if len(panel.Targets) == 0 && panel.Type != "row" {
			t.Errorf("the panel %s has no query", panel.Title)
		}
		for _, target := range panel.Targets {
			expr := variables.Replace(target.Expr)
			if _, err := promQL.ParseExpr(expr); err != nil || strings.Contains(expr, "$") {
				t.Errorf("the panel %s has the query %s: %v", panel.Title, expr, err)
			}
		}
	}
	if len(dashboard.Panels) < 20 {
		t.Errorf("the dashboard has only %d panels", len(dashboard.Panels))
	}
}

// situations are series, with a value each minute, in which an alert fires and in
// which it does not. Before and after them Prometheus has no samples.
var situations = map[string]struct{ fires, quiet string }{
	"CallbackEngineRefuses":  {`caddy_callback_engine_ready 0x60`, `caddy_callback_engine_ready 1x60`},
	"CallbackMetricsMissing": {`up 0x60`, `caddy_callback_engine_ready 1x60`},
	"CallbackDead": {`caddy_callback_deliveries_total{outcome="dead"} 0x50 1x10`,
		`caddy_callback_deliveries_total{outcome="dead"} 7x60`},
	"CallbackAttemptsFail": {
		"caddy_callback_deliveries_total{outcome=\"retry\"} 0+6x60\n caddy_callback_deliveries_total{outcome=\"delivered\"} 0+2x60",
		"caddy_callback_deliveries_total{outcome=\"retry\"} 0+2x60\n caddy_callback_deliveries_total{outcome=\"delivered\"} 0+6x60"},
	"CallbackRetrying": {
		"caddy_callback_tasks{state=\"delivering\"} 2000x120\n caddy_callback_due_deliveries 10x120",
		"caddy_callback_tasks{state=\"delivering\"} 2000x120\n caddy_callback_due_deliveries 1500x120"},
	"CallbackHostFailing": {
		"caddy_callback_hosts{state=\"failing\"} 2x120",
		"caddy_callback_hosts{state=\"failing\"} 0x120\n caddy_callback_hosts{state=\"paused\"} 1x120"},
	"CallbackHostPaused": {
		"caddy_callback_hosts{state=\"paused\"} 1x120",
		"caddy_callback_hosts{state=\"failing\"} 1x120\n caddy_callback_hosts{state=\"paused\"} 0x120"},
	"CallbackStoreNearlyFull": {
		"caddy_callback_store_used_bytes 95x60\n caddy_callback_store_limit_bytes 100x60",
		"caddy_callback_store_used_bytes 85x60\n caddy_callback_store_limit_bytes 100x60"},
	"CallbackQueueOld": {
		"caddy_callback_queue_oldest_seconds{queue=\"q\"} 0+60x120\n caddy_callback_queued_tasks{queue=\"q\"} 3x120\n caddy_callback_delayed_tasks{queue=\"q\"} 2x120",
		"caddy_callback_queue_oldest_seconds{queue=\"q\"} 0+60x120\n caddy_callback_queued_tasks{queue=\"q\"} 3x120\n caddy_callback_delayed_tasks{queue=\"q\"} 3x120"},
	"CallbackLag": {
		"caddy_callback_delivery_lag_seconds_bucket{le=\"32.768\"} 0+1x60\n caddy_callback_delivery_lag_seconds_bucket{le=\"131.072\"} 0+9x60\n caddy_callback_delivery_lag_seconds_bucket{le=\"+Inf\"} 0+9x60",
		"caddy_callback_delivery_lag_seconds_bucket{le=\"32.768\"} 0+9x60\n caddy_callback_delivery_lag_seconds_bucket{le=\"131.072\"} 0+9x60\n caddy_callback_delivery_lag_seconds_bucket{le=\"+Inf\"} 0+9x60"},
	"CallbackDeliveriesStand": {
		"caddy_callback_due_deliveries 5x60\n caddy_callback_deliveries_total{outcome=\"delivered\"} 3x60",
		"caddy_callback_due_deliveries 5x60\n caddy_callback_deliveries_total{outcome=\"delivered\"} 0+1x60"},
	"CallbackTasksFail": {
		"caddy_callback_tasks_total{route=\"a\",status=\"TIMEOUT\"} 0+1x60\n caddy_callback_tasks_total{route=\"a\",status=\"COMPLETE\"} 0+1x60",
		"caddy_callback_tasks_total{route=\"a\",status=\"TIMEOUT\"} 0+1x60\n caddy_callback_tasks_total{route=\"a\",status=\"COMPLETE\"} 0+9x60"},
	"CallbackQueueNearlyFull": {
		"caddy_callback_queued_tasks{queue=\"q\"} 90x60\n caddy_callback_queue_max_tasks{queue=\"q\"} 100x60",
		"caddy_callback_queued_tasks{queue=\"q\"} 70x60\n caddy_callback_queue_max_tasks{queue=\"q\"} 100x60"},
	"CallbackQueueStands": {
		"caddy_callback_queued_tasks{queue=\"q\"} 3x120\n caddy_callback_delayed_tasks{queue=\"q\"} 2x120\n caddy_callback_queue_starts_total{queue=\"other\"} 0+1x120",
		"caddy_callback_queued_tasks{queue=\"q\"} 3x120\n caddy_callback_delayed_tasks{queue=\"q\"} 2x120\n caddy_callback_queue_starts_total{queue=\"q\"} 0+1x120\n" +
			" caddy_callback_queued_tasks{queue=\"later\"} 2x120\n caddy_callback_delayed_tasks{queue=\"later\"} 2x120"},
}

func TestEveryAlertFires(t *testing.T) {
	t.Parallel()
	file, errs := rulefmt.ParseFile(folder+"alerts.yml", false, model.UTF8Validation, promQL, silent)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	tested := 0
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			tested++
			t.Run(rule.Alert, func(t *testing.T) {
				t.Parallel()
				in, ok := situations[rule.Alert]
				if !ok {
					t.Fatal("the alert has no situation")
				}
				if alert := firing(t, rule, in.quiet); alert != nil {
					t.Errorf("the alert fires although it should not: %v", alert.Annotations)
				}
				alert := firing(t, rule, in.fires)
				if alert == nil {
					t.Fatal("the alert does not fire")
				}
				if text := alert.Annotations.String(); strings.Contains(text, "error") && strings.Contains(text, "template") ||
					strings.Contains(text, "no value") || alert.Annotations.Get("description") == "" || alert.Labels.Get("severity") == "" {
					t.Errorf("the alert has the annotations %s", text)
				}
			})
		}
	}
	if tested != len(situations) {
		t.Errorf("%d alerts have %d situations", tested, len(situations))
	}
}

// firing evaluates a rule each minute of a situation and returns its alert, if it
// fires at the end.
func firing(t *testing.T, rule rulefmt.Rule, series string) (found *rules.Alert) {
	t.Helper()
	expr, err := promQL.ParseExpr(rule.Expr)
	if err != nil {
		t.Fatal(err)
	}
	storage := promqltest.LoadedStorage(t, "load 1m\n "+series)
	engine := promqltest.NewTestEngine(t, false, 0, 100_000)
	alert := rules.NewAlertingRule(rule.Alert, expr, time.Duration(rule.For), time.Duration(rule.KeepFiringFor),
		labels.FromMap(rule.Labels), labels.FromMap(rule.Annotations), labels.EmptyLabels(), "", true, silent)
	for minute := range 60 {
		at := time.Unix(0, 0).Add(time.Duration(minute) * time.Minute)
		if _, err := alert.Eval(t.Context(), 0, at, rules.EngineQueryFunc(engine, storage), nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range alert.ActiveAlerts() {
		if a.State == rules.StateFiring {
			return a
		}
	}
	return nil
}
