package task

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
)

// fill sets every field of v, at every depth. Strings are set to text.
func fill(v reflect.Value, text string) {
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Date(2026, 11, 23, 20, 15, 0, 123_000_000, time.UTC)))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), text)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), text)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, text)
		fill(value, text)
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(1.25)
	case reflect.Uint64:
		v.SetUint(1_234_567)
	default:
		v.SetInt(1_234_567)
	}
}

// everyByte contains each byte once, in an order that is not UTF-8.
var everyByte = func() string {
	var b []byte
	for c := range 256 {
		b = append(b, byte(255-c))
	}
	return string(b)
}()

func TestCodecKeepsEveryString(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"plain": "abc/ABC?0 9~", "HTML": "<a href='&'>", "quotes": `"\"`, "replacement character": "\uFFFD",
		"escaped replacement character": `\ufffd`, "UTF-8": "é\u2028\u202E\U0001F600", "control characters": "\t\n\r\x1b\x7f",
		"Latin-1": "r\xe9sum\xe9.pdf", "broken UTF-8": "a\xff\xc3z", "every byte": everyByte,
		"NUL first": "\x00", "NUL first, then UTF-8": "\x00é\U0001F600", "NUL inside": "a\x00b",
		"NUL first, then Latin-1": "\x00\xe9",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec, want := new(Record), new(Record)
			fill(reflect.ValueOf(rec).Elem(), text)
			fill(reflect.ValueOf(want).Elem(), text)
			line, err := Encode(rec)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(rec, want) {
				t.Error("encoding changed the record")
			}
			if bytes.ContainsAny(line, "\n") {
				t.Errorf("the record takes more than one line: %s", line)
			}
			got, err := Decode(line)
			want.Version = 0 // the engine sets it
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("the record is read as\n%+v, not\n%+v: %v", got, want, err)
			}
		})
	}
}

func TestRecordIsEncodedAsByEncodingJSON(t *testing.T) {
	t.Parallel()
	full := new(Record)
	fill(reflect.ValueOf(full).Elem(), `é<"\ \x7f`)
	sparse := new(Record)
	fill(reflect.ValueOf(&sparse.Task).Elem(), "plain")
	sparse.Callback, sparse.Result = new(Callback), new(Result)
	for name, rec := range map[string]*Record{"full": full, "sparse": sparse, "typical": typical(), "empty": new(Record)} {
		var want bytes.Buffer
		e := json.NewEncoder(&want)
		e.SetEscapeHTML(false)
		if err := e.Encode(rec); err != nil {
			t.Fatal(err)
		}
		got, err := appendRecord(nil, rec)
		if err != nil || string(got)+"\n" != want.String() {
			t.Errorf("%s: the record is encoded as\n%s, not\n%s: %v", name, got, want.String(), err)
		}
	}
}

func TestValidTextIsStoredUnchanged(t *testing.T) {
	t.Parallel()
	line, err := Encode(&Record{Task: Task{Error: "<é & \U0001F600>"}, Result: &Result{ContentType: "r\xe9"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"<é & 😀>"`, `"\u0000ré"`} {
		if !bytes.Contains(line, []byte(want)) {
			t.Errorf("%s has no %s", line, want)
		}
	}
}

func TestDecodeMatchesEncodingJSON(t *testing.T) {
	t.Parallel()
	for _, line := range []string{``, `[]`, `{`, `{"task_id":1}`, `{"created_at":"yesterday"}`} {
		if rec, err := Decode([]byte(line)); err == nil {
			t.Errorf("%s is read as %+v", line, rec)
		}
	}
	// Encode does not write this: the character does not fit in a byte.
	rec, err := Decode([]byte(`{"task_id":"\u0000\u0100"}`))
	if err != nil || rec.ID != "\x00\u0100" {
		t.Errorf("the ID is read as %q: %v", rec.ID, err)
	}
}

// large is a finished task's record with many attempts and large headers.
func large(headers int) *Record {
	rec := typical()
	rec.Result.Header = http.Header{"X-Large": {strings.Repeat("\x01", headers)}}
	for i := range maxAttemptsKept {
		rec.AddAttempt(Attempt{StatusCode: 500 + i, Error: strings.Repeat("\xe9", 300), Response: strings.Repeat("\"", 1<<10)})
	}
	return rec
}

func TestEncodeIsBounded(t *testing.T) {
	t.Parallel()
	size := func(line []byte, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if len(line) > MaxEncoded {
			t.Errorf("%d bytes are more than %d", len(line), MaxEncoded)
		}
		return len(line)
	}
	t.Run("HTML takes no more room than text", func(t *testing.T) {
		t.Parallel()
		rec := typical()
		before := size(Encode(rec))
		rec.Result.Header = http.Header{"X": {strings.Repeat("<", 32<<10)}}
		if grown := size(Encode(rec)) - before; grown > 33<<10 {
			t.Errorf("32 KiB of < take %d bytes", grown)
		}
	})
	for _, c := range []struct {
		name                     string
		headers                  int
		responses, errors, heads bool
	}{
		{"all fits", 16 << 10, true, true, true},
		{"responses go first", 33 << 10, false, true, true},
		{"then attempts' errors", 42 << 10, false, false, true},
		{"then the result's header", 64 << 10, false, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rec := large(c.headers)
			want := fmt.Sprintf("%+v", *rec)
			line, err := Encode(rec)
			size(line, err)
			if fmt.Sprintf("%+v", *rec) != want || len(rec.Result.Header) == 0 {
				t.Error("encoding changed the record")
			}
			got, err := Decode(line)
			if err != nil {
				t.Fatal(err)
			}
			last := got.Attempts[len(got.Attempts)-1]
			if (last.Response != "") != c.responses || (last.Error != "") != c.errors || (len(got.Result.Header) > 0) != c.heads {
				t.Errorf("response %t, error %t, header %t are kept", last.Response != "", last.Error != "", len(got.Result.Header) > 0)
			}
			if len(got.Attempts) != maxAttemptsKept || last.StatusCode != 500+maxAttemptsKept-1 || got.Callback == nil {
				t.Error("attempts or the callback are gone")
			}
		})
	}
}

func TestAcceptedTaskCanBeSettled(t *testing.T) {
	t.Parallel()
	request := func(n int) *Record {
		rec := &Record{Task: Task{ID: "x", Queue: "q"}, Callback: typical().Callback}
		rec.Request = &Request{Method: "POST", URI: "/" + strings.Repeat("\xe9", n)}
		return rec
	}
	if _, err := Encode(request(maxNew)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a request of %d bytes and more: %v", maxNew, err)
	}
	rec := request(maxNew/2 - 1<<10) // each byte is stored as two
	if _, err := Encode(rec); err != nil {
		t.Fatal(err)
	}
	rec.Starts, rec.Status, rec.Attempts, rec.Result = 3, Failed, large(0).Attempts, large(64<<10).Result
	rec.DropRequest()
	if _, err := Encode(rec); err != nil {
		t.Errorf("its verdict: %v", err)
	}
}

func FuzzCodec(f *testing.F) {
	for _, s := range []string{"", "a", "\x00", "\x00é", "r\xe9sum\xe9", `\ufffd`, "\uFFFD", everyByte} {
		f.Add(s, s, []byte(`{"task_id":"\u0000x","created_at":"2026-11-23T20:15:00Z"}`))
	}
	f.Fuzz(func(t *testing.T, a, b string, line []byte) {
		rec := &Record{
			Task:     Task{ID: a},
			Callback: &Callback{URL: b, Header: [][2]string{{a, b}}},
			Request:  &Request{URI: a, Header: http.Header{a: {b, a}}, Vars: map[string]string{b: a}},
			Result:   &Result{Header: http.Header{b: {a}, a: nil}},
			Starts:   1,
		}
		if written, err := Encode(rec); err == nil && len(a)+len(b) < 1<<10 {
			if got, err := Decode(written); err != nil || !reflect.DeepEqual(got, rec) {
				t.Errorf("%+v is read as %+v: %v", rec, got, err)
			}
		} else if err != nil && !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
		read, err := Decode(line)
		if err != nil {
			return
		}
		again, err := Encode(read)
		if errors.Is(err, ErrTooLarge) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		second, err := Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		first, _ := json.Marshal(read)
		if got, _ := json.Marshal(second); !bytes.Equal(got, first) && len(line) < MaxEncoded/8 {
			t.Errorf("%s becomes %s", first, got)
		}
	})
}
