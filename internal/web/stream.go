package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// keepAlive is how often a silent stream sends a comment. Proxies close connections
// that are silent for about a minute, and only a write shows that a reader has
// disconnected.
const keepAlive = 15 * time.Second

// stream sends the callbacks of a path as server-sent events, starting with those that
// are remembered, until the client disconnects or the inbox is closed:
//
//	event: reset      data: {"last":12}     drop all callbacks; of those that follow,
//	                                        the numbers up to 12 are not new
//	event: callback   data: {"number":…}    one callback, oldest first
//
// The client sends the ID of the last event, as the header Last-Event-ID or as ?after=,
// to continue from there. If possible, the stream then continues without a reset.
func (in *Inbox) stream(w http.ResponseWriter, r *http.Request) {
	if in.isClosed() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the inbox is being closed", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would buffer events
	quiet := time.NewTicker(keepAlive)
	defer quiet.Stop()
	err := writeStream(w, "retry: 3000\n\n")
	here, at := scopeOf(r), positionOf(r)
	for err == nil && !in.isClosed() {
		c, next, changed := in.memory.next(here, at)
		switch {
		case c != nil:
			err = sendEvent(w, "callback", next, c.shown(streamShown))
		case next.epoch != at.epoch:
			err = sendEvent(w, "reset", next, map[string]uint64{"last": in.memory.lastOf(here)})
		default:
			select {
			case <-changed:
			case <-quiet.C:
				err = writeStream(w, ": still here\n\n")
			case <-r.Context().Done():
				return
			case <-in.closed:
				return
			}
		}
		at = next
	}
}

func (in *Inbox) isClosed() bool {
	select {
	case <-in.closed:
		return true
	default:
		return false
	}
}

func sendEvent(w http.ResponseWriter, event string, id position, data any) error {
	encoded, err := json.Marshal(data) // on one line, as the format requires
	if err != nil {
		return fmt.Errorf("encoding an event: %w", err)
	}
	return writeStream(w, fmt.Sprintf("event: %s\nid: %s\ndata: %s\n\n", event, id, encoded))
}

func writeStream(w http.ResponseWriter, event string) error {
	if _, err := w.Write([]byte(event)); err != nil {
		return err
	}
	return http.NewResponseController(w).Flush()
}

// positionOf reads the position at which a client wants to continue. An invalid
// position is of another epoch, and the client starts again.
func positionOf(r *http.Request) (p position) {
	id := r.Header.Get("Last-Event-ID") // an EventSource sends it when it reconnects
	if id == "" {
		id = r.URL.Query().Get("after")
	}
	epoch, digits, _ := strings.Cut(id, ".")
	number, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return position{}
	}
	return position{epoch, number}
}

func (p position) String() string { return p.epoch + "." + strconv.FormatUint(p.number, 10) }
