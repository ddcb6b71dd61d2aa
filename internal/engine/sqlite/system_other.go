//go:build !windows && (!unix || solaris || illumos || aix)

package sqlite

import (
	"os"
	"syscall"
)

const errQuota = syscall.ENOSPC

// lockFile takes no lock on this system. SQLite's own lock keeps two writers apart.
func lockFile(*os.File) (held bool, err error) { return false, nil }

// freeSpace returns a large number: the free space is unknown on this system.
func freeSpace(string) (int64, error) { return 1 << 62, nil }

// syncFolder does nothing: this system cannot sync folders.
func syncFolder(string) error { return nil }
