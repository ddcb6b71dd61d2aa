package gatewaytest

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// ManyTimes is a retry schedule that outlasts every test.
var ManyTimes = "retry" + strings.Repeat(" 2s", 200)

// BlackHole is a receiver that does not respond until it is opened.
type BlackHole struct {
	*Receiver
	opened   chan struct{}
	mu       sync.Mutex
	answered map[string]int // answered callbacks, by task
}

// NewBlackHole starts a black hole.
func NewBlackHole(t testing.TB) *BlackHole {
	t.Helper()
	b := &BlackHole{opened: make(chan struct{}), answered: make(map[string]int)}
	b.Receiver = NewReceiver(t, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-b.opened:
			b.mu.Lock()
			defer b.mu.Unlock()
			b.answered[r.Header.Get("beam-task-id")]++
		default:
			<-r.Context().Done() // until the gateway disconnects
		}
	})
	return b
}

// Open makes the receiver respond from now on.
func (b *BlackHole) Open() { close(b.opened) }

// Delivered returns nil once n callbacks were answered.
func (b *BlackHole) Delivered(n int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.answered) < n {
		return fmt.Errorf("%d of %d are delivered", len(b.answered), n)
	}
	return nil
}

// Answered returns how often each task's callback was answered.
func (b *BlackHole) Answered() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.answered)
}

// Growth converts a limit of memory growth, in bytes, to one that holds with the
// race detector too.
func Growth(bytes int64) int64 {
	if raceDetector {
		return 5 * bytes // the overhead of the detector, by its documentation
	}
	return bytes
}
