package engine

import (
	"bytes"
	"encoding/json"
	"math"
	"testing"
)

// FuzzUnframe reads what lies in a store that somebody else has written, or a
// failing disk.
func FuzzUnframe(f *testing.F) {
	for _, data := range []string{
		"", "\n", "{}\n", "{}", "null\n", "[]\n", `{"task_id":"x"}` + "\nbody\nand more",
		`{"task_id":1}` + "\n", `{"request":{"header":null}}` + "\n\x00", `{"callback":{"header":[["a"]]}}` + "\n",
	} {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, body, err := unframe(data)
		if err != nil {
			if rec != nil || body != nil {
				t.Errorf("there is an error, and a record: %v", err)
			}
			return
		}
		again, err := frame(rec, body, math.MaxInt)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		rec2, body2, err := unframe(again)
		if err != nil || !bytes.Equal(body, body2) {
			t.Fatalf("the body %q becomes %q: %v", body, body2, err)
		}
		first, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := json.Marshal(rec2); err != nil || !bytes.Equal(first, second) {
			t.Errorf("the record %s becomes %s: %v", first, second, err)
		}
	})
}
