package form

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestEncodeCloudEvent(t *testing.T) {
	t.Parallel()
	const id = "0193b1de-7a4c-7cc3-98c4-dc0c0c07398f"
	event := Event{
		ID: id, Source: "/train", Type: "task.complete", Subject: id, UpstreamStatus: 200,
		Time: time.Date(2026, 11, 30, 8, 0, 0, 120_000_000, time.FixedZone("", 3600)),
	}
	const head = `{"specversion":"1.0","id":"` + id + `","source":"/train","type":"task.complete","subject":"` + id +
		`","time":"2026-11-30T07:00:00.12Z","upstreamstatus":200,`
	for name, tt := range map[string]struct {
		response  Response
		want      string // after head
		truncated int64
	}{
		"JSON": {
			Response{ContentType: "application/json", Body: []byte("{\"a\": [1, \"<\"]}\n")},
			`"datacontenttype":"application/json","data":{"a":[1,"<"]}}`, 0,
		},
		"JSON without a type": {Response{Body: []byte("[1]")}, `"datacontenttype":"application/json","data":[1]}`, 0},
		"null":                {Response{ContentType: "application/json", Body: []byte("null")}, `"datacontenttype":"application/json","data":null}`, 0},
		"invalid JSON": {
			Response{ContentType: "application/json", Body: []byte("{broken")},
			`"datacontenttype":"text/plain; charset=utf-8","data":"{broken"}`, 0,
		},
		"cut JSON": {
			Response{ContentType: "application/json", Body: []byte(`{"a":"0123456789"}`)},
			`"datacontenttype":"text/plain; charset=utf-8","data":"{\"a\":\"01"}`, 18,
		},
		"text in another charset": {
			Response{ContentType: "text/html; charset=ISO-8859-1", Body: []byte("<p>\xe9")},
			`"datacontenttype":"text/html; charset=utf-8","data":"<p>é"}`, 0,
		},
		"a form": {
			Response{ContentType: "application/x-www-form-urlencoded", Body: []byte("a=1&b=")},
			`"datacontenttype":"application/x-www-form-urlencoded","data":"a=1&b="}`, 0,
		},
		"nothing": {Response{}, `"datacontenttype":"text/plain; charset=utf-8","data":""}`, 0},
		"bytes": {
			Response{ContentType: "image/png", Body: []byte("\x89PNG")},
			`"datacontenttype":"image/png","data_base64":"iVBORw=="}`, 0,
		},
		"bytes without a type": {
			Response{ContentType: "!", Body: []byte("\xff")},
			`"datacontenttype":"application/octet-stream","data_base64":"/w=="}`, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cb := EncodeCloudEvent(event, &tt.response, 8)
			if tt.truncated == 0 { // the other results fit
				cb = EncodeCloudEvent(event, &tt.response, 100)
			}
			if string(cb.Body) != head+tt.want || cb.Truncated != tt.truncated || cb.Encoding != "" {
				t.Errorf("%s\nwant %s%s\ntruncated %d, encoding %q", cb.Body, head, tt.want, cb.Truncated, cb.Encoding)
			}
			if !json.Valid(cb.Body) || !strings.HasPrefix(cb.ContentType, "application/cloudevents+json") {
				t.Errorf("%s is %s", cb.ContentType, cb.Body)
			}
		})
	}
}

func TestEncodeCloudEventWithoutResponse(t *testing.T) {
	t.Parallel()
	cb := EncodeCloudEvent(Event{ID: "1", Source: "s", Type: "task.timeout", Error: "the time is up"}, nil, 8)
	const want = `{"specversion":"1.0","id":"1","source":"s","type":"task.timeout","error":"the time is up"}`
	if string(cb.Body) != want || cb.Truncated != 0 {
		t.Errorf("%s, truncated %d", cb.Body, cb.Truncated)
	}
}
