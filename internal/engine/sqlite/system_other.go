//go:build !windows && (!unix || solaris || illumos || aix)

package sqlite

import (
	"os"
	"syscall"
)

const errQuota = syscall.ENOSPC

// lockFile has no lock to take here: SQLite's own keeps two writers apart.
func lockFile(*os.File) (held bool, err error) { return false, nil }

// freeSpace is not known here.
func freeSpace(string) (int64, error) { return 1 << 62, nil }

// syncFolder does nothing: folders cannot be synced here.
func syncFolder(string) error { return nil }
