package cloudevents

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"github.com/caddy-callback/caddy-callback/integration/gatewaytest"
)

// event is a callback as an SDK reads it.
type event struct {
	ID             string    `json:"id"`
	Source         string    `json:"source"`
	Type           string    `json:"type"`
	Subject        string    `json:"subject"`
	Time           time.Time `json:"time"`
	ContentType    string    `json:"contentType"`
	UpstreamStatus int32     `json:"upstreamStatus"`
	Error          string    `json:"error"`
	Data           []byte    `json:"data"`
}

// sdks read a callback and check it against the specification.
var sdks = map[string]func(gatewaytest.Callback) (event, error){"Go": readWithGo, "JavaScript": readWithJavaScript}

func readWithGo(got gatewaytest.Callback) (event, error) {
	req, err := http.NewRequest(http.MethodPost, "http://receiver/", strings.NewReader(got.Body))
	if err != nil {
		return event{}, err
	}
	req.Header = got.Header
	message := cehttp.NewMessageFromHttpRequest(req)
	if message.ReadEncoding() != binding.EncodingStructured {
		return event{}, fmt.Errorf("the encoding is %v", message.ReadEncoding())
	}
	e, err := binding.ToEvent(req.Context(), message)
	if err != nil {
		return event{}, err
	}
	if err := e.Validate(); err != nil {
		return event{}, err
	}
	status, _ := e.Extensions()["upstreamstatus"].(int32)
	reason, _ := e.Extensions()["error"].(string)
	data := e.Data()
	var text string
	if !e.DataBase64 && e.DataContentType() != "application/json" && json.Unmarshal(data, &text) == nil {
		data = []byte(text)
	}
	return event{e.ID(), e.Source(), e.Type(), e.Subject(), e.Time(), e.DataContentType(), status, reason, data}, nil
}

func readWithJavaScript(got gatewaytest.Callback) (e event, err error) {
	headers := make(map[string]string)
	for name := range got.Header {
		headers[strings.ToLower(name)] = got.Header.Get(name)
	}
	request, err := json.Marshal(map[string]any{"headers": headers, "body": got.Body})
	if err != nil {
		return e, err
	}
	cmd := exec.Command("node", "event.mjs")
	cmd.Stdin = bytes.NewReader(request)
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		return e, fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(out, &e)
}

const eventType = "io.github.caddy-callback.task."

func TestSDKsReadCallbacks(t *testing.T) {
	tests := map[string]struct {
		contentType, body string
		status            int
		want              event // without the fields that every callback has
	}{
		"json": {"application/json", `{"n":1,"s":"ü"}`, 200,
			event{Type: eventType + "complete", ContentType: "application/json", UpstreamStatus: 200, Data: []byte(`{"n":1,"s":"ü"}`)}},
		"text": {"text/plain", "done", 201,
			event{Type: eventType + "complete", ContentType: "text/plain; charset=utf-8", UpstreamStatus: 201, Data: []byte("done")}},
		"bytes": {"image/png", "\x89PNG\x00\xff", 200,
			event{Type: eventType + "complete", ContentType: "image/png", UpstreamStatus: 200, Data: []byte("\x89PNG\x00\xff")}},
		"a failure": {"application/json", `{"detail":"out of memory"}`, 500,
			event{Type: eventType + "failed", ContentType: "application/json", UpstreamStatus: 500, Data: []byte(`{"detail":"out of memory"}`)}},
		"a timeout": {"", "", 0,
			event{Type: eventType + "timeout"}},
	}
	app := gatewaytest.NewApp(t, func(w http.ResponseWriter, r *http.Request) {
		test := tests[r.Header.Get("x-case")]
		if test.status == 0 {
			_, _ = io.Copy(io.Discard, r.Body) // before that, the server does not see a disconnect
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", test.contentType)
		w.WriteHeader(test.status)
		_, _ = io.WriteString(w, test.body)
	})
	rcv := gatewaytest.NewReceiver(t, nil)
	g := gatewaytest.Start(t, gatewaytest.Delivering(), "callback {\nformat cloudevents\ntimeout 10s\n}\nreverse_proxy "+app)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			g.Do(http.MethodPost, "/", fmt.Sprintf(`{"callback_url":%q}`, rcv.URL), "Content-Type", "application/json", "x-case", name)
			got := rcv.Next(t)
			for sdk, read := range sdks {
				e, err := read(got)
				if err != nil {
					t.Errorf("%s: %v\n%s", sdk, err, got.Body)
					continue
				}
				if e.ID != got.TaskID() || e.Subject != got.TaskID() || e.Source == "" || time.Since(e.Time).Abs() > time.Minute {
					t.Errorf("%s: the event is %+v", sdk, e)
				}
				if (e.Error == "") != (test.status != 0) {
					t.Errorf("%s: the error is %q", sdk, e.Error)
				}
				e.ID, e.Subject, e.Source, e.Time, e.Error = "", "", "", time.Time{}, ""
				if !reflect.DeepEqual(e, test.want) {
					t.Errorf("%s: the event is %+v with %q, want %+v", sdk, e, e.Data, test.want)
				}
			}
		})
	}
}
