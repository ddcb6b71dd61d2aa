package taskapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-callback/caddy-callback/internal/engine"
	"github.com/caddy-callback/caddy-callback/internal/header"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// Accepted is a task that a queue has accepted.
type Accepted struct {
	ID     string
	Header string    // the name of the header that carries the ID
	Path   string    // the escaped path of the request, as the client wrote it
	Start  time.Time // when the task can start; zero means at once
	NoBody bool      // whether a 202 has no body
}

// Acknowledge responds to an accepted request: with the task's result if the client waits
// and the task ends in time, and with 202 otherwise.
func (c *Collection) Acknowledge(w http.ResponseWriter, r *http.Request, e engine.Engine, a Accepted) error {
	w.Header().Set(a.Header, a.ID)
	wait, waits := header.PreferredWait(r.Header)
	if waits {
		setApplied(w.Header(), wait)
		ctx, cancel := c.waitFor(r, wait)
		defer cancel()
		if rec, err := awaitVerdict(ctx, e, a.ID); err == nil {
			return c.writeResult(w, r, e, rec)
		}
	}
	if _, async := header.Preference(r.Header, "respond-async"); async {
		w.Header().Add("Preference-Applied", "respond-async")
	}
	setRetryAfter(w.Header(), time.Now(), a.Start)
	// A path that starts with two slashes would name another host.
	path := strings.Trim(a.Path, "/")
	w.Header().Set("Location", strings.TrimSuffix("/"+path, "/")+"/"+a.ID)
	if a.NoBody {
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_, err := io.WriteString(w, `{"task_id":"`+a.ID+"\"}\n")
	return err
}

// awaitVerdict waits for the verdict of a task and returns the task.
func awaitVerdict(ctx context.Context, e engine.Tasks, id string) (rec *task.Record, err error) {
	var version uint64
	for rec == nil || !rec.Ended() {
		if rec, err = e.Wait(ctx, id, version); err != nil {
			return nil, err
		}
		version = rec.Version
	}
	return rec, nil
}

// await returns the task that a client asks about. If the client prefers to wait, await
// returns when the task changes or the wait ends. If the client asks for the result,
// await waits for that. If the client sends the ETag of an older version, await returns
// at once. The error means that the task is gone.
func (c *Collection) await(w http.ResponseWriter, r *http.Request, e engine.Engine, rec *task.Record, l Lookup) (*task.Record, error) {
	wait, ok := header.PreferredWait(r.Header)
	if !ok {
		return rec, nil
	}
	setApplied(w.Header(), wait)
	known := r.Header.Values("If-None-Match")
	switch {
	case l.Result && rec.Ended(), !l.Result && isFinal(rec), !l.Result && len(known) > 0 && !matches(known, etagOf(rec)):
		return rec, nil
	}
	ctx, cancel := c.waitFor(r, wait)
	defer cancel()
	for {
		changed, err := e.Wait(ctx, rec.ID, rec.Version)
		switch {
		case errors.Is(err, engine.ErrNotFound):
			return nil, err
		case err != nil:
			return rec, nil // the wait is over, or the engine is unavailable
		case !l.Result || changed.Ended():
			return changed, nil
		}
		rec = changed
	}
}

// writeDocument writes the task document, or 304 if the client has it already.
func writeDocument(w http.ResponseWriter, r *http.Request, rec *task.Record) error {
	etag := etagOf(rec)
	w.Header().Set("ETag", etag)
	if !isFinal(rec) {
		setRetryAfter(w.Header(), rec.CreatedAt, rec.NextAttemptAt)
	}
	if matches(r.Header.Values("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return writeJSON(w, http.StatusOK, publicTask(rec))
}

// isFinal reports whether a task has ended and its callback is done or dead. After that,
// only an operator changes it.
func isFinal(rec *task.Record) bool { return rec.State == task.Done || rec.State == task.Dead }

// etagOf returns the entity tag of a task document. It includes the state, because
// versions restart when a task is copied to another store: without the state, the final
// version could have the tag of an older one.
func etagOf(rec *task.Record) string {
	return `W/"` + string(rec.State) + "-" + strconv.FormatUint(rec.Version, 36) + `"`
}

// matches reports whether the lines of If-None-Match contain an entity tag (RFC 9110,
// section 13.1.2).
func matches(lines []string, etag string) bool {
	for _, line := range lines {
		for _, known := range header.SplitList(line) {
			known = strings.TrimSpace(known)
			if known == "*" || strings.TrimPrefix(known, "W/") == strings.TrimPrefix(etag, "W/") {
				return true
			}
		}
	}
	return false
}

// maxRetryAfter is the longest pause, in seconds, between two requests for a task that
// can change at any moment.
const maxRetryAfter = 60

// setRetryAfter tells a client when to ask for a task again: after a tenth of the task's
// age, so that clients see short tasks early and poll long ones rarely; or, if that is
// later, when the task can start or is attempted next.
func setRetryAfter(h http.Header, created, next time.Time) {
	seconds := min(int64(time.Since(created)/(10*time.Second)), maxRetryAfter)
	if wait := time.Until(next); wait > 0 {
		seconds = max(seconds, int64((wait+time.Second-1)/time.Second))
	}
	h.Set("Retry-After", strconv.FormatInt(max(seconds, 1), 10))
}

// setApplied tells the client how long the gateway waits for a change.
func setApplied(h http.Header, wait time.Duration) {
	h.Set("Preference-Applied", "wait="+strconv.Itoa(int(wait/time.Second)))
}

// waitFor returns a context that ends after wait, when the client disconnects, or when
// clients must stop waiting.
func (c *Collection) waitFor(r *http.Request, wait time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	stop := context.AfterFunc(c.Waits, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}
