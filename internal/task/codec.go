package task

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

// MaxEncoded is the largest encoded record, in bytes. Engines keep a record in one
// row or one message, and read it at each step of its task.
const MaxEncoded = 256 << 10

// maxNew is the largest encoded record of a task that has not run yet. The other half
// of MaxEncoded is reserved for the data that runs and attempts add.
const maxNew = MaxEncoded / 2

// ErrTooLarge is returned by [Encode] for a record of more than [MaxEncoded] bytes, and
// of more than half of that for a queued task that has never run. Large request headers
// are the usual cause.
var ErrTooLarge = errors.New("the task's record is too large")

// Encode returns the record as one line of JSON, which [Decode] reads. It does not
// change rec.
//
// Strings that are valid UTF-8 are stored unchanged. Header values, URIs and query
// strings may contain any bytes: such a string is stored as a NUL character followed by
// one character for each byte, U+0000 to U+00FF. A string that begins with a NUL is
// stored that way too.
//
// If the record is too large, Encode omits parts that nothing depends on until it fits:
// first the traces of attempts, then excerpts of receivers' responses, then the error
// texts of attempts, then the result's header. If it still does not fit, the error is
// [ErrTooLarge]. A time that JSON cannot express is an error too.
func Encode(rec *Record) ([]byte, error) {
	line, err := encode(rec)
	if err != nil {
		return nil, err
	}
	limit := MaxEncoded
	if rec.Status == "" && rec.Starts == 0 {
		limit = maxNew
	}
	if len(line) <= limit {
		return line, nil
	}
	small := *rec
	for _, reduce := range reductions {
		reduce(&small)
		if line, err = encode(&small); err != nil || len(line) <= limit {
			return line, err
		}
	}
	return nil, ErrTooLarge
}

// reductions make a record smaller, the least important part first. They replace the
// parts that they change, because the record shares its parts with the caller's.
var reductions = []func(*Record){
	func(r *Record) { r.Traces = nil },
	func(r *Record) {
		r.Attempts = slices.Clone(r.Attempts)
		for i := range r.Attempts {
			r.Attempts[i].Response = ""
		}
	},
	func(r *Record) {
		for i := range r.Attempts {
			r.Attempts[i].Error = ""
		}
	},
	func(r *Record) {
		if r.Result != nil {
			result := *r.Result
			result.Header = nil
			r.Result = &result
		}
	},
}

func encode(rec *Record) ([]byte, error) {
	line, err := marshal(rec)
	if err == nil && mayLose(line) {
		rare := *rec // reflection would move every caller's record to the heap
		line, err = marshal(mapStrings(reflect.ValueOf(&rare), escape).Interface().(*Record))
	}
	return line, err
}

// lines are buffers for encoding. They grow to the size of the records of this process.
var lines = sync.Pool{New: func() any { return new([]byte) }}

func marshal(rec *Record) ([]byte, error) {
	buffer := lines.Get().(*[]byte)
	defer lines.Put(buffer)
	line, err := appendRecord((*buffer)[:0], rec)
	if err != nil {
		return nil, err
	}
	if cap(line) <= MaxEncoded {
		*buffer = line
	}
	return bytes.Clone(line), nil
}

// escaped is the beginning of an escaped string in JSON.
var escaped = []byte(`"\u0000`)

// mayLose reports whether the line may decode to other strings than it was made from:
// encoding/json replaces bytes that are not UTF-8.
func mayLose(line []byte) bool {
	return bytes.Contains(line, []byte(`\ufffd`)) || bytes.Contains(line, []byte("\uFFFD")) || bytes.Contains(line, escaped)
}

// Decode decodes a record that [Encode] returned. It returns the error of
// encoding/json.
func Decode(line []byte) (*Record, error) {
	rec := new(Record)
	if err := json.Unmarshal(line, rec); err != nil {
		return nil, err
	}
	if bytes.Contains(line, escaped) {
		rec = mapStrings(reflect.ValueOf(rec), unescape).Interface().(*Record)
	}
	return rec, nil
}

// escape encodes s in valid UTF-8. unescape decodes it.
func escape(s string) string {
	if utf8.ValidString(s) && (s == "" || s[0] != 0) {
		return s
	}
	runes := make([]rune, 1, len(s)+1)
	for _, b := range []byte(s) {
		runes = append(runes, rune(b))
	}
	return string(runes)
}

func unescape(s string) string {
	if s == "" || s[0] != 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for _, c := range s[1:] {
		if c > 0xFF {
			return s // escape did not write this
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// mapStrings returns a copy of v with f applied to every string. It uses reflection so
// that no field can be forgotten. It is slow, but few records need it.
func mapStrings(v reflect.Value, f func(string) string) reflect.Value {
	if v.Type() == reflect.TypeFor[time.Time]() {
		return v
	}
	c := reflect.New(v.Type()).Elem()
	c.Set(v)
	switch v.Kind() {
	case reflect.String:
		c.SetString(f(v.String()))
	case reflect.Pointer:
		if !v.IsNil() {
			c.Set(reflect.New(v.Type().Elem()))
			c.Elem().Set(mapStrings(v.Elem(), f))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			c.Field(i).Set(mapStrings(v.Field(i), f))
		}
	case reflect.Slice:
		c.Set(reflect.AppendSlice(reflect.Zero(v.Type()), v))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			c.Index(i).Set(mapStrings(v.Index(i), f))
		}
	case reflect.Map:
		if !v.IsNil() {
			c.Set(reflect.MakeMapWithSize(v.Type(), v.Len()))
			for key, value := range v.Seq2() {
				c.SetMapIndex(mapStrings(key, f), mapStrings(value, f))
			}
		}
	}
	return c
}
