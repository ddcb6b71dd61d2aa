package gatewaytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fatal makes [Eventually] fail at once with err, because waiting cannot help.
func Fatal(err error) error { return fatalError{err} }

type fatalError struct{ error }

// Eventually waits until f returns nil.
func (g *Gateway) Eventually(what string, f func() error) {
	g.T.Helper()
	Eventually(g.T, what, f)
}

// Eventually waits until f returns nil.
func Eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	if err := until(t.Context(), f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// until calls f until it returns nil. It returns the last error of f if ctx ends, after
// [Patience], or at once if the error is [Fatal].
func until(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil || errors.As(err, new(fatalError)) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", Patience, err)
		case <-tick.C:
		}
	}
}

// LogBuffer collects a process's output.
type LogBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *LogBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *LogBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// HasRace reports whether the race detector has found a race. It ignores one in
// nats-server, which sets the timer of its syncs while the timer may fire: that race is
// harmless.
func (b *LogBuffer) HasRace() bool {
	for _, report := range strings.Split(b.String(), "WARNING: DATA RACE")[1:] {
		report, _, _ = strings.Cut(report, "==================")
		if !strings.Contains(report, "(*fileStore).setSyncTimer()") {
			return true
		}
	}
	return false
}
