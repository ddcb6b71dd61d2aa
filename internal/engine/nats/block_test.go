package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// appendRecord appends a record as the embedded server writes it.
func appendRecord(t testing.TB, data []byte, sequence uint64, subject string, body []byte) []byte {
	t.Helper()
	b, err := openBlock(liveStream, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	start := len(data)
	data = binary.LittleEndian.AppendUint32(data, uint32(recordHeader+len(subject)+len(body)+recordChecksum))
	data = binary.LittleEndian.AppendUint64(data, sequence)
	data = binary.LittleEndian.AppendUint64(data, 1_700_000_000_000_000_000+sequence)
	data = binary.LittleEndian.AppendUint16(data, uint16(len(subject)))
	data = append(append(data, subject...), body...)
	b.sum.Reset()
	b.sum.Write(data[start+4 : start+20])
	b.sum.Write(data[start+recordHeader:])
	return b.sum.Sum(data)
}

// sequences returns which records of a block are intact.
func sequences(t testing.TB, data []byte) (intact []uint64) {
	t.Helper()
	b, err := openBlock(liveStream, 1, data)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for r, ok := range b.records() {
		if r.start != at || r.end <= r.start || r.end > len(data) {
			t.Fatalf("a record stands from %d to %d of %d bytes, the one before it ends at %d", r.start, r.end, len(data), at)
		}
		at = r.end
		if ok {
			intact = append(intact, r.sequence)
		}
	}
	if at != len(data) {
		t.Fatalf("%d of %d bytes were looked at", at, len(data))
	}
	return intact
}

func TestWhatABodyHoldsIsNotTakenForARecord(t *testing.T) {
	t.Parallel()
	forged := appendRecord(t, nil, 666, "callback.due.victim.666", []byte("made up"))
	var data []byte
	data = appendRecord(t, data, 1, "callback.due.a.1", []byte("one"))
	second := len(data)
	data = appendRecord(t, data, 2, "callback.due.a.2", slices.Concat([]byte("before"), forged))
	data = appendRecord(t, data, 3, "callback.due.a.3", []byte("three"))
	for at := second; at < second+recordHeader+20; at++ {
		damaged := bytes.Clone(data)
		damaged[at] ^= 0x80
		if got := sequences(t, damaged); !slices.Equal(got, []uint64{1, 3}) {
			t.Errorf("with byte %d of the second record changed, intact are %v", at-second, got)
		}
	}
}

func TestLookingForTheNextRecordIsBounded(t *testing.T) {
	t.Parallel()
	// Every eight bytes look like the beginning of a record of a megabyte.
	data := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, 1<<20), 1<<19)
	b, err := openBlock(liveStream, 1, data)
	if err != nil {
		t.Fatal(err)
	}
	for range b.records() {
		// Without a bound it would take minutes.
	}
	if b.budget > 0 {
		t.Errorf("%d bytes of the budget are left", b.budget)
	}
}

func FuzzBlock(f *testing.F) {
	var whole []byte
	for n := range uint64(4) {
		whole = appendRecord(f, whole, n+1, fmt.Sprintf("callback.due.a.%d", n), bytes.Repeat([]byte{byte(n)}, 40))
	}
	f.Add(whole, uint16(0), byte(0))
	f.Add(whole, uint16(30), byte(1))
	f.Add(whole[:len(whole)-3], uint16(100), byte(0x80))
	f.Add(slices.Concat(whole, make([]byte, 64)), uint16(2), byte(0xff))
	f.Fuzz(func(t *testing.T, data []byte, at uint16, change byte) {
		before := sequences(t, data)
		if len(data) == 0 || change == 0 {
			return
		}
		damaged := bytes.Clone(data)
		damaged[int(at)%len(damaged)] ^= change
		for _, sequence := range sequences(t, damaged) {
			if bytes.Equal(data[:min(len(data), len(whole))], whole[:min(len(data), len(whole))]) && !slices.Contains(before, sequence) {
				t.Errorf("a change of a byte made the record %d", sequence)
			}
		}
	})
}
