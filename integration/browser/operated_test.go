package browser

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// operated is a gateway with a dashboard at /ops, an app and a receiver.
type operated struct {
	*gatewaytest.Gateway
	receiver *gatewaytest.Receiver
	// release makes the app answer the requests to /train.
	release context.CancelFunc
}

// hostileAnswer is the body of the receiver's refusals.
const hostileAnswer = markup + endings + ansi + turned + unseen + longWord + longWord

// startOperated starts the gateway, its app and its receiver. The receiver accepts
// callbacks to /ok, answers 503 to /busy, and 410 to /gone and /away, which ends a
// delivery at once. The next attempt after a 503 is in an hour.
func startOperated(t *testing.T) *operated {
	t.Helper()
	held, release := context.WithCancel(context.Background())
	o := &operated{release: release}
	o.receiver = gatewaytest.NewReceiver(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, hostileAnswer)
		case "/away":
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusGone)
			_, _ = io.WriteString(w, `{"error":"this endpoint was removed"}`)
		case "/gone":
			w.WriteHeader(http.StatusGone)
			_, _ = io.WriteString(w, hostileAnswer)
		}
	})
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // before that, the server does not notice a disconnect
		switch r.URL.Path {
		case "/train":
			select {
			case <-held.Done():
			case <-r.Context().Done():
			}
		case "/broken":
			w.WriteHeader(http.StatusInternalServerError)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"response":"example response"}`)
	})
	t.Cleanup(release) // otherwise the app would wait for its last request
	o.Gateway = gatewaytest.Start(t, gatewaytest.Delivering("retry 1h")+`
	queue train {
		workers 2
		schedule "30 2 * * *" Europe/Paris {
			uri "/train/nightly"
		}
	}`, `
	handle /ops* {
		task_dashboard
	}
	handle /train* {
		callback
		task_queue train {
			rewrite /train
			reverse_proxy `+app+`
		}
	}
	handle {
		callback
		reverse_proxy `+app+`
	}`)
	return o
}

// task sends a task whose callback goes to a path of the receiver.
func (o *operated) task(path string) (id string) {
	o.T.Helper()
	return o.Task(o.receiver.URL + path)
}

// queue sends a task to the queue.
func (o *operated) queue() (id string) {
	o.T.Helper()
	resp, body := o.Post("/train", `{"callback_url":"`+o.receiver.URL+`/ok"}`)
	if resp.StatusCode != http.StatusAccepted {
		o.T.Fatalf("the queue answered %s %s", resp.Status, body)
	}
	return resp.Header.Get("beam-task-id")
}

// until waits until number tasks are in a state.
func (o *operated) until(state, number string) {
	o.T.Helper()
	o.Eventually(number+" are "+state, func() error {
		_, body := o.Do(http.MethodGet, "/ops/api/overview", "")
		if !strings.Contains(body, `"`+state+`":`+number+`,`) && !strings.Contains(body, `"`+state+`":`+number+`}`) {
			return io.EOF
		}
		return nil
	})
}

// fill creates tasks in every state: three are done, two dead, one is delivering,
// two are running and three queued.
func (o *operated) fill() {
	o.T.Helper()
	for range 3 {
		o.task("/ok")
	}
	for range 2 {
		o.task("/gone")
	}
	o.task("/busy")
	for range 5 {
		o.queue()
	}
	o.until("done", "3")
	o.until("dead", "2")
	o.until("running", "2")
	o.until("queued", "3")
	o.until("delivering", "1")
}

// rows waits until the list has n tasks.
func (p *tab) rows(n int) {
	p.t.Helper()
	p.is("the list has the expected length", `document.querySelectorAll("#list tbody tr").length === %s`, n)
}
