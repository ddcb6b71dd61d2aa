package web

import (
	"fmt"
	"net/http"
	"time"
)

// eventInterval is how often an overview is sent.
const eventInterval = time.Second

// events sends overviews as server-sent events until the client disconnects or the API
// is closed. While the engine does not answer, it sends comments.
func (a *API) events(c *call) (int, any, error) {
	select {
	case <-a.closed:
		return 0, nil, &apiError{http.StatusServiceUnavailable, "the gateway is being reloaded or stopped"}
	default:
	}
	select {
	case a.viewers <- struct{}{}:
		defer func() { <-a.viewers }()
	default:
		return 0, nil, &apiError{http.StatusServiceUnavailable, "too many open streams"}
	}
	control := http.NewResponseController(c.w)
	// The admin endpoint sets a read deadline of ten seconds. When it expires, the
	// server takes the client for disconnected.
	_ = control.SetReadDeadline(time.Time{}) // if unsupported, the client reconnects
	w := deadlineWriter{c.w, control}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would buffer events
	if c.r.Method == http.MethodHead {
		return http.StatusOK, nil, nil
	}
	tick := time.NewTicker(eventInterval)
	defer tick.Stop()
	for err := writeStream(w, "retry: 3000\n\n"); err == nil; {
		state, failed := a.summarize()
		if failed != nil {
			err = writeStream(w, ": the engine does not answer\n\n")
		} else {
			err = writeStream(w, fmt.Sprintf("event: overview\ndata: %s\n\n", state))
		}
		select {
		case <-tick.C:
		case <-c.r.Context().Done():
			return 0, nil, nil
		case <-a.closed:
			return 0, nil, nil
		}
	}
	return 0, nil, nil // the client disconnected
}
