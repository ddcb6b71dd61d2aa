package encode

import (
	"net/url"
	"strings"

	"github.com/caddy-callback/caddy-callback/internal/form"
	"github.com/caddy-callback/caddy-callback/internal/profile"
	"github.com/caddy-callback/caddy-callback/internal/task"
)

// The formats of a callback, as task.Callback.Format names them.
const (
	FormatForm = "form"
	FormatJSON = "json"
	FormatRaw  = "raw"
	FormatData = "data" // of the profile beam2 only
	// FormatCloudEvents is a CloudEvent 1.0 in structured JSON.
	FormatCloudEvents = "cloudevents"
)

// write encodes a response in the format of its callback. resp is nil if the task has no
// result.
func write(rec *task.Record, resp *form.Response) form.Callback {
	switch rec.Callback.Format {
	case FormatJSON:
		return writeJSON(rec, resp)
	case FormatRaw:
		return writeRaw(rec, resp)
	case FormatData:
		return form.EncodeData(rec.Error, resp, rec.Callback.MaxResult)
	case FormatCloudEvents:
		return form.EncodeCloudEvent(eventOf(rec), resp, rec.Callback.MaxResult)
	default: // FormatForm, or a format of a later version
		return writeForm(rec, resp)
	}
}

// Formats returns the formats that a user can choose, the default first.
func Formats() []string {
	return []string{FormatForm, FormatJSON, FormatRaw, FormatCloudEvents}
}

func writeForm(rec *task.Record, resp *form.Response) form.Callback {
	if resp == nil {
		return form.EncodeError(rec.Error)
	}
	return form.Encode(*resp, rec.Callback.MaxResult)
}

func writeJSON(rec *task.Record, resp *form.Response) form.Callback {
	return form.EncodeJSON(form.Head{
		TaskID: rec.ID, Status: string(rec.Status), UpstreamStatus: rec.UpstreamStatus, Error: rec.Error,
	}, resp, rec.Callback.MaxResult)
}

func writeRaw(rec *task.Record, resp *form.Response) form.Callback {
	switch {
	case resp != nil:
		return form.EncodeRaw(*resp, rec.Callback.MaxResult)
	case profile.Of(rec.Callback.Profile).Traits().EmptyResult:
		return form.Callback{}
	}
	return form.EncodeError(rec.Error)
}

// eventTypes is the prefix of the event types of verdicts.
const eventTypes = "io.github.caddy-callback.task."

// eventOf returns the attributes of a task's event. They are the same in every attempt,
// because receivers identify an event by its source and ID.
func eventOf(rec *task.Record) form.Event {
	return form.Event{
		ID: rec.ID, Subject: rec.ID, Time: rec.FinishedAt,
		Source:         "/" + url.PathEscape(rec.Route),
		Type:           eventTypes + strings.ToLower(string(rec.Status)),
		UpstreamStatus: rec.UpstreamStatus, Error: rec.Error,
	}
}
