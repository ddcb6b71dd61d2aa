package engine

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"iter"

	"github.com/minio/highwayhash"
)

// A block is a file of the embedded server's: records one after the other, each
// with its length before it and a checksum at its end (filestore.go of
// nats-server, 2.10 to 2.15). The server cuts a block off at the first record
// that is damaged, and with it everything that stands behind it.
type block struct {
	data []byte
	sum  hash.Hash64
	// budget is how many bytes may still be summed in looking for the record that
	// follows a damaged one: what stands there may have been written so that every
	// byte looks like the beginning of a record.
	budget int
}

// The layout of a record: length, sequence, time, length of the subject; then
// subject, header with its length, body, checksum. Numbers are little-endian.
const (
	recordHeader   = 4 + 8 + 8 + 2
	recordChecksum = 8
	maxRecord      = 32 << 20
	hasHeaderBit   = 1 << 31
	tombstoneBit   = 1 << 62 // a record that says that another is deleted
	erasedBit      = 1 << 63
	// budgetShare is how often, on average, a block may be summed.
	budgetShare = 16
)

// openBlock reads a block's bytes. Its checksums depend on the stream and on
// which of its blocks it is.
func openBlock(stream string, index uint32, data []byte) (*block, error) {
	key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", stream, index))
	sum, err := highwayhash.NewDigest64(key[:])
	if err != nil {
		return nil, fmt.Errorf("making a checksum: %w", err)
	}
	return &block{data: data, sum: sum, budget: budgetShare * len(data)}, nil
}

// blockRecord is what can be read of a record, which may be damaged.
type blockRecord struct {
	start, end int
	sequence   uint64
	tombstone  bool
	subject    string
}

// at reads what seems to begin at a place, and says whether it can be a record.
func (b *block) at(start int) (r blockRecord, ok bool) {
	rest := b.data[start:]
	r.start, r.end = start, len(b.data)
	if len(rest) < recordHeader+recordChecksum {
		return r, false
	}
	length := binary.LittleEndian.Uint32(rest)
	r.sequence = binary.LittleEndian.Uint64(rest[4:])
	r.tombstone = r.sequence&tombstoneBit != 0
	r.sequence &^= tombstoneBit | erasedBit
	subject := recordHeader + int(binary.LittleEndian.Uint16(rest[20:]))
	least := subject + recordChecksum
	if length&hasHeaderBit != 0 {
		least += 4
	}
	length &^= hasHeaderBit
	if subject <= len(rest) {
		r.subject = string(rest[recordHeader:subject])
	}
	if length > maxRecord || int(length) < least || int(length) > len(rest) {
		return r, false
	}
	r.end = start + int(length)
	return r, true
}

// intact says whether a record is as it was written.
func (b *block) intact(r blockRecord) bool {
	data := b.data[r.start:r.end]
	body := data[recordHeader+len(r.subject) : len(data)-recordChecksum]
	if binary.LittleEndian.Uint32(data)&hasHeaderBit != 0 {
		body = body[4:] // the length of the header is not summed
	}
	b.sum.Reset()
	b.sum.Write(data[4:20])
	b.sum.Write([]byte(r.subject))
	b.sum.Write(body)
	return bytes.Equal(b.sum.Sum(nil), data[len(data)-recordChecksum:])
}

// records yields what stands in the block, and whether each is intact. A damaged
// stretch is one record.
func (b *block) records() iter.Seq2[blockRecord, bool] {
	return func(yield func(blockRecord, bool) bool) {
		for i := 0; i < len(b.data); {
			r, ok := b.at(i)
			intact := ok && b.intact(r)
			if !ok || !intact && !b.follows(r.end) {
				r.end = b.resume(i + 1)
			}
			if !yield(r, intact) {
				return
			}
			i = r.end
		}
	}
}

// follows says whether an intact record, or nothing, stands at a place.
func (b *block) follows(at int) bool {
	if at == len(b.data) {
		return true
	}
	r, ok := b.at(at)
	return ok && b.intact(r)
}

// resume returns where the records go on behind a damaged one whose length
// cannot be trusted. From there to the block's end all must be intact: the body
// of a request may hold what looks like a record, but not up to the end of the
// one that it stands in.
func (b *block) resume(from int) int {
	for i := from; i < len(b.data); i++ {
		end := i
		for end < len(b.data) {
			r, ok := b.at(end)
			if !ok {
				break
			}
			if b.budget -= r.end - r.start; b.budget < 0 {
				return len(b.data)
			}
			if !b.intact(r) {
				break
			}
			end = r.end
		}
		if end == len(b.data) {
			return i
		}
	}
	return len(b.data)
}
