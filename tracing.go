package callback

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Traces are Caddy's: its `tracing` directive decides which requests have a
// span and where spans go. The span of the request that made a task goes with
// the task, as a traceparent, so that what happens to the task hours later, on
// another node, belongs to the same trace.

// traceContext writes and reads spans as Trace Context does, whatever Caddy's
// propagators are: callbacks promise a traceparent.
var traceContext propagation.TraceContext

// spanOf returns the span of a request as a traceparent, "" if it has none. It
// allocates nothing then.
func spanOf(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	header := make(propagation.MapCarrier, 1)
	traceContext.Inject(ctx, header)
	return header.Get("traceparent")
}

// inSpan returns a context with the span of that traceparent, which ended or
// belongs to somebody else.
func inSpan(ctx context.Context, traceparent string) context.Context {
	return traceContext.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// noSpan is the span where nothing is traced. It does nothing.
var noSpan = trace.SpanFromContext(context.Background())

// tracing is what a generation of the configuration has of `tracing`. It has spans of
// its own only if a route has a tracing handler.
type tracing struct {
	provider *traceProvider
	tracer   trace.Tracer    // nil if nothing is traced
	queues   map[string]bool // those behind a tracing handler
}

// open looks for tracing handlers. All apps must be provisioned.
func (t *tracing) open(a *App) error {
	app, err := a.ctx.AppIfConfigured("http")
	if err != nil {
		return nil // there are no routes
	}
	t.queues = make(map[string]bool)
	traced := false
	for _, server := range app.(*caddyhttp.App).Servers {
		traced = t.walk(server.Routes, false) || traced
		for _, route := range server.NamedRoutes {
			traced = t.walk(caddyhttp.RouteList{*route}, false) || traced
		}
	}
	if !traced {
		return nil
	}
	provider, _, err := traceProviders.LoadOrNew(traceProviderKey, newTraceProvider)
	if err != nil {
		return fmt.Errorf("opening the exporter of traces: %w", err)
	}
	t.provider = provider.(*traceProvider)
	t.tracer = t.provider.Tracer("github.com/caddy-callback/caddy-callback", trace.WithInstrumentationVersion(Version))
	return nil
}

// close exports the spans that are left, unless another generation traces too.
func (t *tracing) close() error {
	if t.provider == nil {
		return nil
	}
	t.provider = nil
	_, err := traceProviders.Delete(traceProviderKey)
	return err
}

// traceProviders has the provider of the process. Generations share it, so that a
// reload loses no span.
var traceProviders = caddy.NewUsagePool()

const traceProviderKey = "spans"

// traceProvider exports spans as the OTEL_ variables of the environment say, as
// Caddy's own provider does, which is not exported.
type traceProvider struct{ *sdktrace.TracerProvider }

func newTraceProvider() (caddy.Destructor, error) {
	exporter, err := autoexport.NewSpanExporter(context.Background())
	if err != nil {
		return nil, err
	}
	return &traceProvider{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))}, nil
}

// exportTimeout is how long the end of the process waits for a collector.
const exportTimeout = 5 * time.Second

// Destruct implements [caddy.Destructor].
func (p *traceProvider) Destruct() error {
	ctx, cancel := context.WithTimeout(context.Background(), exportTimeout)
	defer cancel()
	if err := p.Shutdown(ctx); err != nil {
		return fmt.Errorf("exporting the last spans: %w", err)
	}
	return nil
}

// walk goes through routes in the order of a request and notes which queues are
// behind a tracing handler. before says that there is one before the routes. It
// returns whether there is one in them.
func (t *tracing) walk(routes caddyhttp.RouteList, before bool) (found bool) {
	for _, route := range routes {
		for _, handler := range route.Handlers {
			switch inner := handler.(type) {
			case *TaskQueue:
				t.queues[inner.Name] = t.queues[inner.Name] || before
				found = t.walk(inner.Routes, before) || found
			case *caddyhttp.Subroute:
				found = t.walk(inner.Routes, before) || found
			case caddy.Module:
				if inner.CaddyModule().ID == "http.handlers.tracing" {
					before, found = true, true
				}
			}
		}
	}
	return found
}

// span starts a span below the one that made the task; noSpan if there is none,
// or nowhere to send it to.
func (a *App) span(rec *task.Record, name string, opts ...trace.SpanStartOption) trace.Span {
	tracer := a.tracing.tracer
	if tracer == nil {
		return noSpan
	}
	ctx := context.Background()
	if rec.Span != "" {
		ctx = inSpan(ctx, rec.Span)
	}
	_, span := tracer.Start(ctx, name, opts...)
	return span
}

// traceTask notes in the span of a waiting client's request what its task came to.
func traceTask(ctx context.Context, rec *task.Record) {
	if span := trace.SpanFromContext(ctx); rec.Queue == "" && span.IsRecording() {
		span.SetAttributes(attribute.String("callback.task_id", rec.ID), attribute.String("callback.status", string(rec.Status)))
	}
}

// startRun begins the span of one run of a queue's task: below the request that
// was accepted, or, for a run of a schedule, at the root of a trace if `tracing`
// is in front of the queue. What the block sends upstream is part of it.
func (q *TaskQueue) startRun(x *execution, r *http.Request) trace.Span {
	rec := &x.rec
	if rec.Span == "" && (rec.Schedule == "" || !q.app.tracing.queues[q.Name]) {
		return noSpan
	}
	span := q.app.span(rec, "run task", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("callback.task_id", rec.ID), attribute.String("callback.queue", rec.Queue),
		attribute.Int("callback.start", rec.Starts)))
	if !span.SpanContext().IsValid() {
		return noSpan
	}
	x.ctx = trace.ContextWithSpan(x.ctx, span)
	traceContext.Inject(x.ctx, propagation.HeaderCarrier(r.Header))
	if rec.Span == "" {
		rec.Span = spanOf(x.ctx)
	}
	return span
}

// endRun ends the span of a run.
func endRun(span trace.Span, rec *task.Record) {
	if span.IsRecording() {
		span.SetAttributes(attribute.String("callback.status", string(rec.Status)))
		if rec.UpstreamStatus != 0 {
			span.SetAttributes(attribute.Int("callback.upstream_status", rec.UpstreamStatus))
		}
		if rec.Status != task.Complete {
			span.SetStatus(codes.Error, rec.Error)
		}
	}
	span.End()
}

// startAttempt begins the span of one attempt and makes it the parent of what the
// receiver does. There is no url.full, which the conventions for clients ask for:
// a callback's URL may hold a secret.
func (a *App) startAttempt(rec *task.Record, req *http.Request, at time.Time) trace.Span {
	if rec.Span == "" {
		return noSpan
	}
	span := a.span(rec, "deliver callback", trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(at))
	if !span.SpanContext().IsValid() {
		return span
	}
	traceContext.Inject(trace.ContextWithSpan(context.Background(), span), propagation.HeaderCarrier(req.Header))
	if span.IsRecording() {
		span.SetAttributes(attribute.String("http.request.method", req.Method),
			attribute.Int("http.request.resend_count", rec.Tries), attribute.Int("callback.attempt", rec.Tries+1),
			attribute.String("callback.task_id", rec.ID), attribute.String("callback.status", string(rec.Status)))
		if host, port, err := net.SplitHostPort(rec.CallbackHost); err == nil {
			number, _ := strconv.Atoi(port) // it was parsed when the task was accepted
			span.SetAttributes(attribute.String("server.address", host), attribute.Int("server.port", number))
		}
	}
	return span
}

// endAttempt ends the span of an attempt; nil if it has none. outcome is empty if
// the attempt does not count.
func endAttempt(span trace.Span, ans *send.Answer, outcome deliver.Outcome) {
	if span == nil || !span.IsRecording() {
		return
	}
	if outcome != "" {
		span.SetAttributes(attribute.String("callback.outcome", string(outcome)))
	}
	if ans.Status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", ans.Status))
	}
	if !ans.Accepted() {
		kind := "_OTHER" // as the conventions have it
		if ans.Status != 0 {
			kind = strconv.Itoa(ans.Status)
		}
		span.SetAttributes(attribute.String("error.type", kind))
		span.SetStatus(codes.Error, ans.Message())
	}
	span.End(trace.WithTimestamp(ans.At.Add(ans.Took)))
}
