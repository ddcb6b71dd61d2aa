//go:build linux || darwin || freebsd || dragonfly

package engine

import "syscall"

// diskSpace returns how many bytes of the disk that folder is on are free to
// this process, and how many there are.
func diskSpace(folder string) (free, total uint64, err error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(folder, &fs); err != nil {
		return 0, 0, err
	}
	// Less than nothing is free on a BSD where root has used what is root's.
	return uint64(max(int64(fs.Bavail), 0)) * uint64(fs.Bsize), uint64(fs.Blocks) * uint64(fs.Bsize), nil //nolint:unconvert // the types differ between systems
}
