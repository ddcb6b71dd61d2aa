// Package tracing records the runs of queue tasks and the attempts of deliveries as spans
// in the trace of the request that made the task. The task keeps the span of its request
// as a traceparent. So later work on the task belongs to the same trace, even hours later
// and on another node.
package tracing

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

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

// traceContext reads and writes spans in the Trace Context format, whatever propagators
// Caddy uses: a callback has a traceparent.
var traceContext propagation.TraceContext

// ParentOf returns the span of a request as a traceparent, or "". Without a span it does
// not allocate.
func ParentOf(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	header := make(propagation.MapCarrier, 1)
	traceContext.Inject(ctx, header)
	return header.Get("traceparent")
}

// noSpan is a span that records nothing.
var noSpan = trace.SpanFromContext(context.Background())

// Provider exports spans as configured by the OTEL_ environment variables. It does the
// same as Caddy's provider, which other modules cannot use.
type Provider struct{ sdk *sdktrace.TracerProvider }

// NewProvider returns a provider whose exporter is open.
func NewProvider() (*Provider, error) {
	exporter, err := autoexport.NewSpanExporter(context.Background())
	if err != nil {
		return nil, err
	}
	return &Provider{sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))}, nil
}

// exportTimeout bounds the wait for a collector when the process exits.
const exportTimeout = 5 * time.Second

// Destruct exports the remaining spans and closes the exporter. It has the name that
// Caddy's usage pools call.
func (p *Provider) Destruct() error {
	ctx, cancel := context.WithTimeout(context.Background(), exportTimeout)
	defer cancel()
	if err := p.sdk.Shutdown(ctx); err != nil {
		return fmt.Errorf("exporting the last spans: %w", err)
	}
	return nil
}

// Tracer returns a tracer of this version of the module.
func (p *Provider) Tracer(version string) *Tracer {
	return &Tracer{p.sdk.Tracer("github.com/caddy-callback/caddy-callback", trace.WithInstrumentationVersion(version))}
}

// Tracer starts the spans of tasks. A nil Tracer starts none. Its methods may be called
// from several goroutines at once.
type Tracer struct{ tracer trace.Tracer }

// start starts a child of the span that made the task. It returns noSpan if tracing is
// off.
func (t *Tracer) start(rec *task.Record, name string, opts ...trace.SpanStartOption) trace.Span {
	if t == nil {
		return noSpan
	}
	ctx := context.Background()
	if rec.Span != "" {
		ctx = traceContext.Extract(ctx, propagation.MapCarrier{"traceparent": rec.Span})
	}
	_, span := t.tracer.Start(ctx, name, opts...)
	return span
}

// StartRun starts the span of one run of a queue's task, and returns a context with it.
// Its parent is the request that was accepted. A run of a schedule has none; it starts a
// trace if root is set. The header, that of the run's request, gets the traceparent, so
// that requests of the handlers are part of the span.
func (t *Tracer) StartRun(ctx context.Context, rec *task.Record, header http.Header, root bool) (context.Context, trace.Span) {
	if rec.Span == "" && (rec.Schedule == "" || !root) {
		return ctx, noSpan
	}
	span := t.start(rec, "run task", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
		attribute.String("callback.task_id", rec.ID), attribute.String("callback.queue", rec.Queue),
		attribute.Int("callback.start", rec.Starts)))
	if !span.SpanContext().IsValid() {
		return ctx, noSpan
	}
	ctx = trace.ContextWithSpan(ctx, span)
	traceContext.Inject(ctx, propagation.HeaderCarrier(header))
	if rec.Span == "" {
		rec.Span = ParentOf(ctx)
	}
	return ctx, span
}

// EndRun ends the span of a run.
func EndRun(span trace.Span, rec *task.Record) {
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

// RecordTask adds the outcome of a waiting client's task to the span of its request.
func RecordTask(ctx context.Context, rec *task.Record) {
	if span := trace.SpanFromContext(ctx); rec.Queue == "" && span.IsRecording() {
		span.SetAttributes(attribute.String("callback.task_id", rec.ID), attribute.String("callback.status", string(rec.Status)))
	}
}

// StartAttempt starts the span of one attempt and sends it to the receiver as the parent.
// It does not set url.full, which the conventions for HTTP clients require, because a
// callback URL may contain a secret.
func (t *Tracer) StartAttempt(rec *task.Record, req *http.Request, at time.Time) trace.Span {
	if rec.Span == "" {
		return noSpan
	}
	span := t.start(rec, "deliver callback", trace.WithSpanKind(trace.SpanKindClient), trace.WithTimestamp(at))
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

// EndAttempt ends the span of an attempt, which may be nil. outcome is empty if the
// attempt does not count.
func EndAttempt(span trace.Span, ans *send.Answer, outcome deliver.Outcome) {
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
