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

// Caddy's `tracing` directive decides which requests have a span and where spans are
// exported. The task keeps the span of its request as a traceparent. So later work on
// the task belongs to the same trace, even hours later and on another node.

// traceContext reads and writes spans in the Trace Context format, whatever propagators
// Caddy uses: a callback has a traceparent.
var traceContext propagation.TraceContext

// spanOf returns the span of a request as a traceparent, or "". Without a span it does
// not allocate.
func spanOf(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	header := make(propagation.MapCarrier, 1)
	traceContext.Inject(ctx, header)
	return header.Get("traceparent")
}

// inSpan returns a context whose parent span is that of the traceparent.
func inSpan(ctx context.Context, traceparent string) context.Context {
	return traceContext.Extract(ctx, propagation.MapCarrier{"traceparent": traceparent})
}

// noSpan is a span that records nothing.
var noSpan = trace.SpanFromContext(context.Background())

// tracing is the tracing setup of a generation. It exports spans only if a route has a
// tracing handler.
type tracing struct {
	provider *traceProvider
	tracer   trace.Tracer    // nil if nothing is traced
	queues   map[string]bool // queues behind a tracing handler
}

// open looks for tracing handlers. All apps must be provisioned before.
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

// close exports the remaining spans, unless another generation uses the exporter.
func (t *tracing) close() error {
	if t.provider == nil {
		return nil
	}
	t.provider = nil
	_, err := traceProviders.Delete(traceProviderKey)
	return err
}

// traceProviders has the provider of the process. Generations share it, so that no
// span is lost in a reload.
var traceProviders = caddy.NewUsagePool()

const traceProviderKey = "spans"

// traceProvider exports spans as configured by the OTEL_ environment variables. It does
// the same as Caddy's provider, which other modules cannot use.
type traceProvider struct{ *sdktrace.TracerProvider }

func newTraceProvider() (caddy.Destructor, error) {
	exporter, err := autoexport.NewSpanExporter(context.Background())
	if err != nil {
		return nil, err
	}
	return &traceProvider{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))}, nil
}

// exportTimeout bounds the wait for a collector when the process exits.
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

// walk visits the routes in the order of a request, and records which queues are
// behind a tracing handler. before means that the request has passed one already.
// walk reports whether the routes contain one.
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

// span starts a child of the span that made the task. It returns noSpan if there is
// none, or tracing is off.
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

// traceTask adds the task's outcome to the span of the client's request.
func traceTask(ctx context.Context, rec *task.Record) {
	if span := trace.SpanFromContext(ctx); rec.Queue == "" && span.IsRecording() {
		span.SetAttributes(attribute.String("callback.task_id", rec.ID), attribute.String("callback.status", string(rec.Status)))
	}
}

// startRun starts the span of one run of a queue's task. Its parent is the request that
// was accepted. A run of a schedule starts a trace if the queue is behind `tracing`.
// Requests of the handlers are part of the span.
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

// startAttempt starts the span of one attempt and sends it to the receiver as the
// parent. It does not set url.full, which the conventions for HTTP clients require,
// because a callback URL may contain a secret.
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
			number, _ := strconv.Atoi(port) // valid, because it was parsed when the task was accepted
			span.SetAttributes(attribute.String("server.address", host), attribute.Int("server.port", number))
		}
	}
	return span
}

// endAttempt ends the span of an attempt, which may be nil. outcome is empty if the
// attempt does not count.
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
		kind := "_OTHER" // as in the semantic conventions
		if ans.Status != 0 {
			kind = strconv.Itoa(ans.Status)
		}
		span.SetAttributes(attribute.String("error.type", kind))
		span.SetStatus(codes.Error, ans.Message())
	}
	span.End(trace.WithTimestamp(ans.At.Add(ans.Took)))
}
