package callback

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/google/uuid"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// lookup is a request about a task: <path>/<id> or <path>/<id>/result.
type lookup struct {
	id     string
	result bool
}

// lookupOf reads what a request asks about a task, if it does.
func lookupOf(method, path string) (lookup, bool) {
	path = strings.TrimSuffix(path, "/")
	var l lookup
	switch method {
	case http.MethodGet, http.MethodHead:
		path, l.result = strings.CutSuffix(path, "/result")
	case http.MethodDelete:
	default:
		return lookup{}, false
	}
	last := path[strings.LastIndexByte(path, '/')+1:]
	id, err := uuid.Parse(last)
	if err != nil || len(last) != len(id.String()) {
		return lookup{}, false
	}
	l.id = id.String()
	return l, true
}

// answer answers a request about a task. Its ID is the capability: who knows it
// may see and cancel the task.
func (q *TaskQueue) answer(w http.ResponseWriter, r *http.Request, s *sharedStore, l lookup) error {
	w.Header().Set("Cache-Control", "no-store") // that there is no such task yet, too
	rec, err := s.Get(r.Context(), l.id)
	switch {
	case errors.Is(err, engine.ErrNotFound), err == nil && rec.Queue != q.Name:
		return writeProblem(w, &problem{http.StatusNotFound, "no such task in this queue"})
	case err != nil:
		return unavailable(w, q.log, err)
	case r.Method == http.MethodDelete:
		return q.cancel(w, r, s, l.id)
	case l.result:
		return q.writeResult(w, r, s, rec)
	}
	return writeJSON(w, http.StatusOK, publicTask(rec))
}

// publicTask is the task document as a client of the queue sees it: without what
// receivers answered, and without the host of the operator's own URL and what went
// wrong there, which may name internal addresses.
func publicTask(rec *task.Record) task.Task {
	doc := rec.Task
	if rec.Callback != nil && rec.Callback.Trusted {
		doc.CallbackHost = ""
	}
	doc.Attempts = append([]task.Attempt(nil), doc.Attempts...)
	for i := range doc.Attempts {
		doc.Attempts[i].Response = ""
		if rec.Callback != nil && rec.Callback.Trusted && doc.Attempts[i].Error != "" {
			doc.Attempts[i].Error = "not delivered"
		}
	}
	return doc
}

// errCanceled is what the callback of a canceled task says.
const errCanceled = "canceled"

func (q *TaskQueue) cancel(w http.ResponseWriter, r *http.Request, s *sharedStore, id string) error {
	err := s.Act(r.Context(), id, engine.Action{Kind: engine.Cancel, Reason: errCanceled})
	switch {
	case errors.Is(err, engine.ErrEnded):
		return writeProblem(w, &problem{http.StatusConflict, "the task has ended"})
	case errors.Is(err, engine.ErrNotFound):
		return writeProblem(w, &problem{http.StatusNotFound, "no such task in this queue"})
	case err != nil:
		return unavailable(w, q.log, err)
	}
	q.app.countCanceled(r.Context(), s, id)
	return writeJSON(w, http.StatusAccepted, map[string]string{"task_id": id})
}

// statusWithout is what is answered in place of a response that there is none
// of: what a waiting client would have got.
func statusWithout(rec *task.Record) int {
	switch {
	case rec.Status == task.TimedOut:
		return http.StatusGatewayTimeout
	case rec.Error == errCanceled:
		return http.StatusGone
	default:
		return http.StatusBadGateway
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}
