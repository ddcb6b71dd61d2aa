package engine

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
)

// health remembers the last publish that failed, until one succeeds again. A
// server with a full disk answers nothing, so requests for callbacks are
// turned away at once instead of each waiting for a publish to time out.
type health struct{ down atomic.Pointer[error] }

func (h *health) ok() {
	if h.down.Load() != nil {
		h.down.Store(nil)
	}
}

func (h *health) failed(err error) { h.down.Store(&err) }

// probeInterval is how soon after its recovery the engine takes callbacks
// again.
const probeInterval = time.Second

// Ready returns nil if the engine can store a task, or else why it cannot.
func (e *Engine) Ready() error {
	if err := e.health.down.Load(); err != nil {
		return *err
	}
	if !e.nc.IsConnected() {
		return fmt.Errorf("not connected to the engine")
	}
	return nil
}

// watchHealth tries to store a message for as long as the engine is unwell.
func (e *Engine) watchHealth(ctx context.Context) {
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		down := e.health.down.Load()
		if down == nil {
			continue
		}
		e.log.Error("the engine cannot store; requests for callbacks are refused", zap.Error(*down))
		probe := &nats.Msg{Subject: probeSubject, Data: make([]byte, probeSize)}
		if _, err := e.send(ctx, probe); err == nil {
			e.log.Info("the engine stores again")
		}
	}
}

// probeSize is that of a small task: a disk with room for less is full.
const probeSize = 4 << 10
