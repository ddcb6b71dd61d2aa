package engine

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/caddy-callback/caddy-callback/internal/task"
)

// fillValue sets everything in v to something, strings to text.
func fillValue(v reflect.Value, text string) {
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Date(2026, 11, 23, 20, 15, 0, 123_000_000, time.UTC)))
		return
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillValue(v.Elem(), text)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fillValue(v.Field(i), text)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fillValue(v.Index(0), text)
		fillValue(v.Index(1), text)
	case reflect.Array:
		for i := range v.Len() {
			fillValue(v.Index(i), text)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fillValue(key, text)
		fillValue(value, text)
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	default:
		v.SetInt(1_234_567)
	}
}

func TestARecordIsWrittenAsEncodingJSONWritesItAndReadAgain(t *testing.T) {
	t.Parallel()
	records := map[string]*task.Record{
		"an empty one":                      {},
		"one with empty parts":              {Callback: &task.Callback{}, Result: &task.Result{}, Request: &task.Request{}, Task: task.Task{Attempts: []task.Attempt{{}}}},
		"one with a time of another zone":   {Task: task.Task{CreatedAt: time.Date(2026, 2, 3, 4, 5, 6, 7, time.FixedZone("", 5400))}},
		"one with negative numbers":         {Tries: -1, Timeout: -5},
		"one of before the state was empty": {Task: task.Task{State: task.Done}},
	}
	for name, text := range map[string]string{
		"plain text": "abc/ABC?0 9~", "what HTML escapes": "<a href='&'>", "quotes": `"\"`,
		"control characters": "\x00\t\n\r\x1b\x7f", "what is not ASCII": "é\u2028\u202E\U0001F600", "what is not UTF-8": "a\xff\xc3z",
	} {
		rec := new(task.Record)
		fillValue(reflect.ValueOf(rec).Elem(), text)
		records["everything, with "+name] = rec
	}
	for name, rec := range records {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, err := json.Marshal(rec)
			if isForeign(want) {
				want, err = task.Encode(rec)
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := encodeRecord([]byte("before"), rec)
			if err != nil || string(got) != "before"+string(want) {
				t.Errorf("the record is written as\n%s, not\n%s: %v", got, want, err)
			}
			if quick := readRecord(gjson.ParseBytes(want), new(task.Record)); !quick {
				t.Error("encoding/json has to read what was written here")
			}
			again, err := task.Decode(want)
			if err != nil {
				t.Fatal(err)
			}
			read, err := decodeRecord(want)
			if err != nil || !reflect.DeepEqual(read, again) {
				t.Errorf("it is read as\n%+v, not\n%+v: %v", read, again, err)
			}
		})
	}
}

func TestARecordThatCannotBeWrittenIsAnError(t *testing.T) {
	t.Parallel()
	rec := &task.Record{Task: task.Task{CreatedAt: time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)}}
	if line, err := encodeRecord(nil, rec); err == nil {
		t.Errorf("a time that JSON does not have is written: %s", line)
	}
}

func TestWhatSomebodyElseWroteIsReadAsEncodingJSONReadsIt(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		``, `null`, `[]`, `3`, `"x"`, `{`, `{}x`, `{"task_id":1}`, `{"TASK_ID":"x"}`, `{"task_id":"a","task_id":"b"}`,
		`{"task_id":null,"callback":null,"result":null,"attempts":null,"created_at":null}`,
		`{"unknown":{"a":[1,2]},"task_id":"x"}`, `{"tries":1.0}`, `{"tries":99999999999999999999}`, `{"tries":"1"}`,
		`{"created_at":"yesterday"}`, `{"created_at":"2026-11-23T20:15:00,5Z"}`, `{"created_at":"2026-11-23T2:15:00Z"}`,
		`{"callback":{"trusted":false,"url":"a\u0062c"}}`, `{"callback":{"trusted":"yes"}}`, `{"result":[]}`,
		` { "task_id" : "x" , "result" : { "size" : 5 } } `, `{"state":"done"}`, `{"error":"\ud800"}`,
		`{"attempts":[{"at":"2026-11-23T20:15:00Z","duration_ms":1,"status_code":200}]}`,
	} {
		want, wantErr := task.Decode([]byte(line))
		got, err := decodeRecord([]byte(line))
		if (err != nil) != (wantErr != nil) {
			t.Errorf("%s: the error is %v, not %v", line, err, wantErr)
		} else if err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%s is read as %+v, not %+v", line, got, want)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"task_id":"x","created_at":"2026-11-23T20:15:00Z","callback":{"url":"http://a/?b=1\u0026c"},"tries":3}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		want, wantErr := task.Decode(line)
		got, err := decodeRecord(line)
		if (err != nil) != (wantErr != nil) || err == nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%q is read as %+v (%v), not %+v (%v)", line, got, err, want, wantErr)
		}
	})
}
