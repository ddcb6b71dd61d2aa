package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// keepAlive is how often something is sent when there is nothing to send:
// proxies end connections that are silent for a minute or so, and a reader that
// is gone shows only in a write.
const keepAlive = 15 * time.Second

// stream sends the callbacks of a path as server-sent events, those that are
// remembered first, until the reader leaves or the inbox is closed:
//
//	event: reset      data: {"last":12}     forget what you have; of what follows,
//	                                        the numbers to 12 are not news
//	event: callback   data: {"number":…}    one callback, oldest first
//
// The ID of the last event, as the header Last-Event-ID or as ?after=, goes on
// from there, without a reset if that is possible.
func (in *Inbox) stream(w http.ResponseWriter, r *http.Request) {
	if in.isClosed() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "the inbox is being closed", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would collect events before it passes them on
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
	encoded, err := json.Marshal(data) // on one line, as the format wants it
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

// positionOf reads the position at which a reader wants to go on. What it makes
// up is a position of another epoch: it begins anew.
func positionOf(r *http.Request) (p position) {
	id := r.Header.Get("Last-Event-ID") // from an EventSource that connects again by itself
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
