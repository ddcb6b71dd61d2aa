package integration

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// spans is a receiver of traces, like an OpenTelemetry collector.
type spans struct {
	url string

	mu  sync.Mutex
	got []*otlp.Span
}

func newSpans(t *testing.T) *spans {
	t.Helper()
	s := new(spans)
	server := gatewaytest.NewServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the gateway was killed while sending
		}
		var export collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &export); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s is no export of traces: %v", r.URL.Path, err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, resource := range export.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				s.got = append(s.got, scope.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	server.Start()
	s.url = server.URL
	return s
}

// env returns the environment that sends Caddy's spans to s.
func (s *spans) env() []string {
	return []string{"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_EXPORTER_OTLP_ENDPOINT=" + s.url,
		"OTEL_SERVICE_NAME=gateway", "OTEL_BSP_SCHEDULE_DELAY=20"}
}

// find waits for the span that has this traceparent or name.
func (s *spans) find(t *testing.T, what string) (found *otlp.Span) {
	t.Helper()
	gatewaytest.Eventually(t, "the span "+what, func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, span := range s.got {
			if traceparentOf(span) == what || span.GetName() == what {
				found = span
				return nil
			}
		}
		return fmt.Errorf("it is none of %d", len(s.got))
	})
	return found
}

// all returns the spans that have arrived, as text.
func (s *spans) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.got)
}

func traceparentOf(span *otlp.Span) string {
	return fmt.Sprintf("00-%x-%x-01", span.GetTraceId(), span.GetSpanId())
}

// attributes returns the attributes of a span as text.
func attributes(span *otlp.Span) map[string]string {
	found := make(map[string]string)
	for _, a := range span.GetAttributes() {
		switch v := a.GetValue(); {
		case v.GetIntValue() != 0:
			found[a.GetKey()] = fmt.Sprint(v.GetIntValue())
		default:
			found[a.GetKey()] = v.GetStringValue()
		}
	}
	return found
}

// below checks that a span is a child of another one.
func below(t *testing.T, child, parent *otlp.Span, kind otlp.Span_SpanKind) {
	t.Helper()
	if string(child.GetTraceId()) != string(parent.GetTraceId()) || string(child.GetParentSpanId()) != string(parent.GetSpanId()) {
		t.Errorf("the span %s is not below %s: %v", child.GetName(), parent.GetName(), child)
	}
	if child.GetKind() != kind {
		t.Errorf("the span %s has the kind %v", child.GetName(), child.GetKind())
	}
}

// has checks that a span has the attributes.
func has(t *testing.T, span *otlp.Span, want map[string]string) {
	t.Helper()
	got := attributes(span)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("the span %s has %s %q, want %q", span.GetName(), name, got[name], value)
		}
	}
}

// failsFirst is a receiver that refuses the first callback.
func failsFirst(t *testing.T) *gatewaytest.Receiver {
	var first sync.Once
	return gatewaytest.NewReceiver(t, func(w http.ResponseWriter, _ *http.Request) {
		first.Do(func() { w.WriteHeader(http.StatusInternalServerError) })
	})
}

const tracingSite = "tracing {\nspan accepted\n}\ncallback\n"

func TestTaskAndAttemptsShareTrace(t *testing.T) {
	t.Parallel()
	const client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	traced := newSpans(t)
	upstream := make(chan string, 1)
	app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) { upstream <- r.Header.Get("Traceparent") })
	rcv := failsFirst(t)
	g := gatewaytest.New(t, gatewaytest.Delivering("retry 1s"), tracingSite+"reverse_proxy "+app)
	g.Env = traced.env()
	g.Start()
	id := g.Task(rcv.URL+"/hook?token=hunter2", "Traceparent", client)

	accepted := traced.find(t, "accepted")
	if traceparentOf(accepted) != <-upstream || fmt.Sprintf("%x", accepted.GetParentSpanId()) != client[36:52] {
		t.Errorf("the app and the client are not in the trace of %v", accepted)
	}
	has(t, accepted, map[string]string{"callback.task_id": id, "callback.status": "COMPLETE"})

	first := traced.find(t, rcv.Next(t).Header.Get("Traceparent"))
	below(t, first, accepted, otlp.Span_SPAN_KIND_CLIENT)
	has(t, first, map[string]string{"callback.task_id": id, "callback.attempt": "1", "callback.outcome": "retry",
		"http.request.method": "POST", "http.response.status_code": "500", "error.type": "500", "server.address": "127.0.0.1"})
	if err := g.Reload(); err != nil { // the new generation makes the next attempt
		t.Fatal(err)
	}
	second := traced.find(t, rcv.Next(t).Header.Get("Traceparent"))
	below(t, second, accepted, otlp.Span_SPAN_KIND_CLIENT)
	has(t, second, map[string]string{"callback.task_id": id, "callback.attempt": "2", "callback.outcome": "delivered",
		"http.request.resend_count": "1", "http.response.status_code": "200", "error.type": ""})
	if string(first.GetSpanId()) == string(second.GetSpanId()) {
		t.Error("both attempts are one span")
	}
	if all := traced.all(); strings.Contains(all, "hunter2") || strings.Contains(all, "/hook") {
		t.Errorf("a span tells the callback's URL: %s", all)
	}
}

func TestTraceSurvivesKill(t *testing.T) {
	t.Parallel()
	for name, another := range map[string]bool{"restarted": false, "continued by another node": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			traced := newSpans(t)
			upstream := make(chan string, 1)
			app := gatewaytest.NewApp(t, func(_ http.ResponseWriter, r *http.Request) { upstream <- r.Header.Get("Traceparent") })
			rcv := failsFirst(t)
			options := gatewaytest.Delivering("retry 1s")
			if another {
				options += "\nengine nats " + gatewaytest.StartCluster(t, 1).URLs() + " {\nreplicas 1\n}"
			}
			site := tracingSite + "task_queue q {\nreverse_proxy " + app + "\n}"
			g := gatewaytest.New(t, options, site)
			g.Env = traced.env()
			g.Start()
			g.Post("/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))

			accepted := traced.find(t, "accepted")
			run := traced.find(t, <-upstream)
			below(t, run, accepted, otlp.Span_SPAN_KIND_CONSUMER)
			has(t, run, map[string]string{"callback.queue": "q", "callback.start": "1", "callback.status": "COMPLETE",
				"callback.upstream_status": "200"})
			first := rcv.Next(t)
			has(t, traced.find(t, first.Header.Get("Traceparent")),
				map[string]string{"callback.task_id": first.TaskID(), "callback.attempt": "1"})

			attemptsStored(t, g, first.TaskID(), 1)
			// The process that continues has not seen the request.
			g.Kill()
			if another {
				g = gatewaytest.New(t, options, site)
				g.Env = traced.env()
			}
			g.Start()
			second := traced.find(t, rcv.Next(t).Header.Get("Traceparent"))
			below(t, second, accepted, otlp.Span_SPAN_KIND_CLIENT)
			has(t, second, map[string]string{"callback.task_id": first.TaskID(), "callback.attempt": "2"})
		})
	}
}

func TestScheduledRunStartsTrace(t *testing.T) {
	t.Parallel()
	traced := newSpans(t)
	app := gatewaytest.NewApp(t, func(http.ResponseWriter, *http.Request) {})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, "queue q {\nschedule \"@every 1s\"\n}",
		"tracing\ntask_queue q {\ncallback "+rcv.URL+"\nreverse_proxy "+app+"\n}")
	g.Env = traced.env()
	g.Start()
	attempt := traced.find(t, rcv.Next(t).Header.Get("Traceparent"))
	run := traced.find(t, fmt.Sprintf("00-%x-%x-01", attempt.GetTraceId(), attempt.GetParentSpanId()))
	below(t, attempt, run, otlp.Span_SPAN_KIND_CLIENT)
	if run.GetName() != "run task" || len(run.GetParentSpanId()) > 0 {
		t.Errorf("a tick's trace begins with %v", run)
	}
}

func TestOnlyTracedRoutesHaveTraces(t *testing.T) {
	t.Parallel()
	const client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	traced := newSpans(t)
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.New(t, gatewaytest.Delivering(), "route /traced {\ntracing\ncallback\nrespond ok\n}\nroute {\ncallback\nrespond ok\n}")
	g.Env = traced.env()
	g.Start()
	g.Task(rcv.URL, "Traceparent", client)
	if got := rcv.Next(t).Header.Get("Traceparent"); got != client {
		t.Errorf("without tracing the receiver got the traceparent %s", got)
	}
	g.Post("/traced", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL))
	attempt := traced.find(t, rcv.Next(t).Header.Get("Traceparent"))
	traced.find(t, "handler")
	gatewaytest.Eventually(t, "two spans", func() error {
		traced.mu.Lock()
		defer traced.mu.Unlock()
		if len(traced.got) < 2 {
			return errors.New("there are fewer")
		}
		for _, span := range traced.got {
			if string(span.GetTraceId()) != string(attempt.GetTraceId()) {
				return gatewaytest.Fatal(fmt.Errorf("a span of another trace: %v", span))
			}
		}
		return nil
	})
}
