package engine

import (
	"errors"
	"syscall"
	"unsafe"
)

var getDiskFreeSpace = syscall.NewLazyDLL("kernel32.dll").NewProc("GetDiskFreeSpaceExW")

// diskSpace returns how many bytes of the disk that folder is on are free to
// this process, and how many there are.
func diskSpace(folder string) (free, total uint64, err error) {
	name, err := syscall.UTF16PtrFromString(folder)
	if err != nil {
		return 0, 0, err
	}
	ok, _, err := getDiskFreeSpace.Call(
		uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&free)), uintptr(unsafe.Pointer(&total)), 0)
	if ok == 0 {
		return 0, 0, err
	}
	return free, total, nil
}

// What Windows says of a disk that is full.
const (
	errorHandleDiskFull = syscall.Errno(39)
	errorDiskFull       = syscall.Errno(112)
)

func isFull(err error) bool {
	return errors.Is(err, errorDiskFull) || errors.Is(err, errorHandleDiskFull)
}
