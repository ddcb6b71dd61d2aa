package main

import (
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3/vfs"
)

// disk is a temporary file on the file system of the gateways' stores. It is written as
// the log of the database is, so that its fsync takes as long as that of the engine.
type disk struct {
	file vfs.File
	next int64 // offset of the next commit
}

const (
	commitSize = 12 << 10 // bytes that a commit writes at a low rate
	logSize    = 4 << 20  // bytes, after which the log is overwritten
	commits    = logSize / commitSize
)

func openDisk() (*disk, error) {
	const flags = vfs.OPEN_READWRITE | vfs.OPEN_CREATE | vfs.OPEN_EXCLUSIVE | vfs.OPEN_DELETEONCLOSE
	file, _, err := vfs.Find("os").Open("", flags)
	if err != nil {
		return nil, fmt.Errorf("creating a file for fsync: %w", err)
	}
	d := &disk{file: file}
	if _, err := file.WriteAt(make([]byte, commits*commitSize), 0); err != nil {
		return nil, err
	}
	return d, file.Sync(vfs.SYNC_NORMAL)
}

// syncs writes commits at a rate for a duration, one after the other, and returns how long
// each write with its fsync took.
func (k *disk) syncs(rate int, d time.Duration) ([]time.Duration, error) {
	commit := make([]byte, commitSize)
	took := make([]time.Duration, max(1, int(d.Seconds()*float64(rate))))
	began := time.Now()
	for i := range took {
		time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		start := time.Now()
		if _, err := k.file.WriteAt(commit, k.next); err != nil {
			return nil, err
		}
		if err := k.file.Sync(vfs.SYNC_NORMAL); err != nil {
			return nil, err
		}
		took[i] = time.Since(start)
		k.next = (k.next + commitSize) % (commits * commitSize)
	}
	return took, nil
}
