package task

import (
	"net/http"
	"testing"
	"time"
)

// typical is the record of a waiting client's task after its first attempt.
func typical() *Record {
	at := time.Date(2026, 11, 23, 20, 15, 0, 123_000_000, time.UTC)
	return &Record{
		Task: Task{
			ID: "0193b1de-7a4c-7cc3-98c4-dc0c0c07398f", Status: Complete, UpstreamStatus: 200,
			CreatedAt: at, StartedAt: at, FinishedAt: at, CallbackHost: "receiver.example:443",
			Attempts: []Attempt{{At: at, StatusCode: 503, DurationMS: 12, Response: "try again later"}},
		},
		Tries: 1, Route: "srv0",
		Callback: &Callback{
			URL: "https://receiver.example/hooks?task=1&user=2", Format: "form", TaskHeader: "beam-task-id",
			StatusHeader: "x-beam-task-status", MaxResult: 8 << 20,
			Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		},
		Result: &Result{ContentType: "application/json", Size: 2},
	}
}

func BenchmarkCodec(b *testing.B) {
	queued := typical()
	queued.Request = &Request{
		Method: "POST", URI: "/train", Proto: "HTTP/1.1", Host: "example.com", RemoteAddr: "192.0.2.1:5000",
		Header: http.Header{"Content-Type": {"application/json"}, "User-Agent": {"curl/8"}, "Accept": {"*/*"}, "Beam-Task-Id": {queued.ID}},
	}
	for name, rec := range map[string]*Record{"typical": typical(), "with a request": queued} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				line, err := Encode(rec)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := Decode(line); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
