//go:build !windows

package engine

import (
	"errors"
	"syscall"
)

// isFull says whether an error means that the disk, or a quota on it, is full.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
