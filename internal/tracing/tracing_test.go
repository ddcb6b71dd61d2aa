package tracing_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/deliver"
	"github.com/caddy-callback/caddy-callback/internal/send"
	"github.com/caddy-callback/caddy-callback/internal/task"
	"github.com/caddy-callback/caddy-callback/internal/tracing"
)

func TestNoTracingDoesNotAllocate(t *testing.T) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://receiver.example/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	var tracer *tracing.Tracer
	rec, at := new(task.Record), time.Now()
	allocs := testing.AllocsPerRun(100, func() {
		if tracing.ParentOf(req.Context()) != "" {
			t.Error("there is a span")
		}
		tracing.RecordTask(req.Context(), rec)
		ctx, span := tracer.StartRun(req.Context(), rec, req.Header, true)
		if ctx != req.Context() {
			t.Error("the context has changed")
		}
		tracing.EndRun(span, rec)
		tracing.EndAttempt(tracer.StartAttempt(rec, req, at), &send.Answer{At: at}, deliver.Delivered)
	})
	if allocs != 0 || len(req.Header) != 0 {
		t.Errorf("%v allocations, and the header %v", allocs, req.Header)
	}
}

// testTracer returns a tracer whose exporter writes nowhere.
func testTracer(t *testing.T) *tracing.Tracer {
	t.Helper()
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	provider, err := tracing.NewProvider()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := provider.Destruct(); err != nil {
			t.Error(err)
		}
	})
	return provider.Tracer("test")
}

func TestSpansBelongToTraceOfTask(t *testing.T) {
	tracer := testTracer(t)
	const trace = "0af7651916cd43dd8448eb211c80319c"
	rec := &task.Record{Span: "00-" + trace + "-b7ad6b7169203331-01"}
	header := make(http.Header)
	ctx, span := tracer.StartRun(t.Context(), rec, header, false)
	defer tracing.EndRun(span, rec)
	if got := span.SpanContext().TraceID().String(); got != trace {
		t.Errorf("the run is in the trace %s", got)
	}
	parent := tracing.ParentOf(ctx)
	if header.Get("Traceparent") != parent || parent == rec.Span || parent == "" {
		t.Errorf("the run's request has the parent %q, its context %q", header.Get("Traceparent"), parent)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://receiver.example/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	attempt := tracer.StartAttempt(rec, req, time.Now())
	defer tracing.EndAttempt(attempt, new(send.Answer), deliver.Retry)
	if got := attempt.SpanContext().TraceID().String(); got != trace || req.Header.Get("Traceparent") == "" {
		t.Errorf("the attempt is in the trace %s and sends %v", got, req.Header)
	}
}

func TestRunOfScheduleStartsTrace(t *testing.T) {
	tracer := testTracer(t)
	for _, root := range []bool{false, true} {
		rec := &task.Record{Schedule: "nightly"}
		_, span := tracer.StartRun(t.Context(), rec, make(http.Header), root)
		if span.SpanContext().IsValid() != root || (rec.Span != "") != root {
			t.Errorf("root %v: the span is %v, the record has %q", root, span.SpanContext(), rec.Span)
		}
		tracing.EndRun(span, rec)
	}
}
