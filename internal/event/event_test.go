package event

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// newHandlers returns handlers that are subscribed to every name but "other".
func newHandlers(emit func(name string, data map[string]any)) *Handlers {
	return &Handlers{Subscribed: func(name string) bool { return name != "other" }, Emit: emit, Log: zap.NewNop()}
}

// add queues an event whose data has a number.
func add(q *Queue, name string, n int) {
	q.Add(name, zap.NewNop(), func() map[string]any { return map[string]any{"n": n} })
}

func TestEventsAreEmittedInOrder(t *testing.T) {
	t.Parallel()
	var got []string
	h := newHandlers(func(name string, data map[string]any) { got = append(got, fmt.Sprint(name, data["n"])) })
	q := NewQueue(func() *Handlers { return h })
	for n := range 3 {
		add(q, "a", n)
		add(q, "other", n)
	}
	<-q.Idle()
	if want := []string{"a0", "a1", "a2"}; !slices.Equal(got, want) {
		t.Errorf("the events are %v, want %v", got, want)
	}
}

func TestEventsWaitForGeneration(t *testing.T) {
	t.Parallel()
	var newest atomic.Pointer[Handlers]
	q := NewQueue(newest.Load)
	add(q, "a", 1)
	<-q.Idle() // there is no generation that could emit it
	got := make(chan any, 1)
	newest.Store(newHandlers(func(_ string, data map[string]any) { got <- data["n"] }))
	q.Resume()
	if n := <-got; n != 1 {
		t.Errorf("the event is %v", n)
	}
}

func TestQueuedEventsAreBounded(t *testing.T) {
	t.Parallel()
	var newest atomic.Pointer[Handlers]
	q := NewQueue(newest.Load)
	core, logs := observer.New(zap.WarnLevel)
	for range maxWaiting + 5 {
		q.Add("a", zap.New(core), func() map[string]any { return nil })
	}
	emitted := 0
	h := newHandlers(func(string, map[string]any) { emitted++ })
	h.Log = zap.New(core)
	newest.Store(h)
	q.Resume()
	<-q.Idle()
	if emitted != maxWaiting {
		t.Errorf("%d events are emitted, want %d", emitted, maxWaiting)
	}
	if dropped := logs.FilterField(zap.Int("dropped", 5)); logs.Len() != 2 || dropped.Len() != 1 {
		t.Errorf("the log is %v", logs.All())
	}
}

func TestLeaveWaitsForRunningHandler(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		end := make(chan struct{})
		h := newHandlers(func(string, map[string]any) { <-end })
		q := NewQueue(func() *Handlers { return h })
		<-q.Leave(h) // none of its handlers runs
		add(q, "a", 1)
		synctest.Wait()
		<-q.Leave(newHandlers(nil))
		handled := q.Leave(h)
		select {
		case <-handled:
			t.Error("the handler still runs")
		default:
		}
		close(end)
		<-handled
		<-q.Idle()
	})
}

func TestPanicOfHandlerIsLogged(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.ErrorLevel)
	h := newHandlers(func(_ string, data map[string]any) {
		if data["n"] == 1 {
			panic("broken")
		}
	})
	h.Log = zap.New(core)
	q := NewQueue(func() *Handlers { return h })
	add(q, "a", 1)
	add(q, "a", 2)
	<-q.Idle()
	if logs.FilterMessage("event handler panicked").Len() != 1 {
		t.Errorf("the log is %v", logs.All())
	}
}
