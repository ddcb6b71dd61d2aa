package nats

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// outdatedAPI forwards requests to the JetStream API. As a server does that does not know
// yet that another one was elected, it answers some gets with the message that the
// subject had before.
type outdatedAPI struct {
	mu       sync.Mutex
	previous map[string][]byte // the response to the first get of a subject
	outdated map[string]int    // how many gets of a stream to answer with it
}

const outdatedPrefix = "OUTDATED"

// noMessage is the response to a get of a subject without messages.
const noMessage = `{"type":"io.nats.jetstream.api.v1.stream_msg_get_response","error":{"code":404,"err_code":10037,"description":"no message found"}}`

func newOutdatedAPI(t *testing.T, url string) *outdatedAPI {
	t.Helper()
	a := &outdatedAPI{previous: make(map[string][]byte), outdated: make(map[string]int)}
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	_, err = nc.Subscribe(outdatedPrefix+".>", func(msg *nats.Msg) { go a.forward(t, nc, msg) })
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *outdatedAPI) forward(t *testing.T, nc *nats.Conn, msg *nats.Msg) {
	path := strings.TrimPrefix(msg.Subject, outdatedPrefix+".")
	if strings.HasPrefix(path, "CONSUMER.MSG.NEXT.") { // answered with many messages
		if err := nc.PublishRequest(jetstream.DefaultAPIPrefix+path, msg.Reply, msg.Data); err != nil && !nc.IsClosed() {
			t.Error(err)
		}
		return
	}
	response, err := nc.Request(jetstream.DefaultAPIPrefix+path, msg.Data, stepTimeout)
	if err != nil {
		return // the engine has closed
	}
	data := response.Data
	if stream, ok := strings.CutPrefix(path, "STREAM.MSG.GET."); ok {
		data = a.answer(stream, msg.Data, data)
	}
	_ = msg.Respond(data)
}

// answer returns the response to a get.
func (a *outdatedAPI) answer(stream string, request, current []byte) []byte {
	var get struct {
		Subject string `json:"last_by_subj"`
	}
	_ = json.Unmarshal(request, &get)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.outdated[stream] > 0 {
		a.outdated[stream]--
		if previous := a.previous[get.Subject]; previous != nil {
			return previous
		}
		return []byte(noMessage)
	}
	if a.previous[get.Subject] == nil {
		a.previous[get.Subject] = current
	}
	return current
}

// expect makes the next n gets of a stream outdated.
func (a *outdatedAPI) expect(stream string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outdated[stream] = n
}

// used reports whether all of them were made.
func (a *outdatedAPI) used(stream string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.outdated[stream] == 0
}

func TestOutdatedAnswers(t *testing.T) {
	t.Parallel()
	for name, isRead := range map[string]bool{"an earlier step": true, "no step": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := startServer(t, t.TempDir(), nil).ClientURL()
			api := newOutdatedAPI(t, url)
			e := open(t, Config{URLs: []string{url}, LeaseTime: time.Hour, apiPrefix: outdatedPrefix})
			rec := newTask()
			if _, _, err := e.Enqueue(t.Context(), rec, strings.NewReader(strings.Repeat("r", 2*inlineLimit)), engine.EnqueueOptions{}); err != nil {
				t.Fatal(err)
			}
			outdated := func(stream string, f func() error) {
				t.Helper()
				api.expect(stream, 3)
				if err := f(); err != nil {
					t.Fatal(err)
				}
				if !api.used(stream) {
					t.Error("no outdated answers were given")
				}
			}
			var job engine.Job
			claim := func() error {
				got, err := e.Jobs(rec.Queue).Next(t.Context(), 1, 0)
				if len(got) > 0 {
					job = got[0]
				}
				return err
			}
			if !isRead {
				outdated(taskStream, claim)
			} else if err := claim(); err != nil { // it reads the step that is answered later
				t.Fatal(err)
			}
			outdated(bodyStream, func() error {
				body, err := e.Open(t.Context(), rec.ID, engine.RequestBody)
				if err == nil {
					body.Close()
				}
				return err
			})
			if err := settle(t, job.Lease, job.Record, "result"); err != nil {
				t.Fatal(err)
			}
			outdated(taskStream, func() error {
				got, err := e.Take(t.Context(), receiver, 1)
				if err == nil && len(got) != 1 {
					t.Fatal("the delivery was not taken")
				}
				if err == nil {
					err = got[0].Done(t.Context())
				}
				return err
			})
			outdated(taskStream, func() error {
				got, err := e.Get(t.Context(), rec.ID)
				if err == nil && got.State != task.Done {
					t.Errorf("the task is %s", got.State)
				}
				return err
			})
		})
	}
}

// A task whose message was purged is forgotten, and not before.
func TestPurgedTaskIsForgotten(t *testing.T) {
	t.Parallel()
	e := open(t, Config{URLs: []string{startServer(t, t.TempDir(), nil).ClientURL()}})
	rec := newTask()
	if _, _, err := e.Enqueue(t.Context(), rec, nil, engine.EnqueueOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.tasks.Purge(t.Context(), jetstream.WithPurgeSubject(taskSubject+"*")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Get(t.Context(), rec.ID); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("getting the task: %v", err)
	}
	stats, err := e.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := stats.Tasks[task.Queued]; n != 0 {
		t.Errorf("%d tasks are queued", n)
	}
}

// A gateway that does not know yet that another one has removed a job does not ask for it
// again and again.
func TestJobRemovedElsewhereIsDropped(t *testing.T) {
	t.Parallel()
	cfg := Config{URLs: []string{startServer(t, t.TempDir(), nil).ClientURL()}, LeaseTime: time.Hour}
	a, b := open(t, cfg), open(t, cfg)
	rec := newTask()
	rec.Callback, rec.CallbackHost = nil, ""
	enqueue(t, a, rec, "request")
	eventually(t, "both know the job", func() bool { return b.index.depth(rec.Queue) == 1 })
	b.stopReading()
	jobs, err := a.Jobs(rec.Queue).Next(t.Context(), 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := settle(t, jobs[0].Lease, jobs[0].Record, "result"); err != nil {
		t.Fatal(err)
	}
	if err := a.Act(t.Context(), rec.ID, engine.Action{Kind: engine.Delete}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	before := b.nc.Stats().OutMsgs
	if jobs, err := b.Jobs(rec.Queue).Next(ctx, 1, 0); len(jobs) > 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d jobs: %v", len(jobs), err)
	}
	if n := b.nc.Stats().OutMsgs - before; n > 10 {
		t.Errorf("%d messages were sent", n)
	}
}
