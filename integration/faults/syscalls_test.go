//go:build linux && amd64

package faults

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These tests need a disk whose fsync fails. The gateway installs a seccomp filter that
// asks it at every fsync, before the kernel does anything. A file that the test writes
// decides whether the call fails. This needs no privileges and applies to all files.

// syncFile is the environment variable with the file of a gateway. While the first byte
// of the file is 1, every fsync fails.
const syncFile = "CALLBACK_TEST_SYNC"

func init() {
	if file := os.Getenv(syncFile); file != "" {
		if err := filterSyncs(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

// filterSyncs makes the fsyncs of this process fail while the first byte of the file is
// 1.
func filterSyncs(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	shared, err := syscall.Mmap(int(f.Fd()), 0, 4, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping %s: %w", file, err)
	}
	fails := (*uint32)(unsafe.Pointer(&shared[0]))
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS // the number of the call is at 0
		equals = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		end    = unix.BPF_RET | unix.BPF_K
	)
	program := []unix.SockFilter{
		{Code: load, K: 0},
		{Code: equals, K: unix.SYS_FSYNC, Jt: 2},
		{Code: equals, K: unix.SYS_FDATASYNC, Jt: 1},
		{Code: end, K: unix.SECCOMP_RET_ALLOW},
		{Code: end, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("disabling new privileges: %w", err)
	}
	const allThreads = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		allThreads|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})))
	if errno != 0 {
		return fmt.Errorf("installing a filter: %w", errno)
	}
	go answerSyncs(listener, fails)
	return nil
}

// syncCall and syncAnswer are the kernel's seccomp_notif and seccomp_notif_resp.
type (
	syncCall struct {
		ID   uint64
		PID  uint32
		_    uint32
		Data [8]uint64
	}
	syncAnswer struct {
		ID    uint64
		Value int64
		Error int32
		Flags uint32
	}
)

// answerSyncs answers the calls that the filter has stopped.
func answerSyncs(listener uintptr, fails *uint32) {
	for {
		var call syncCall
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&call)))
		if errors.Is(errno, unix.EINTR) || errors.Is(errno, unix.ENOENT) {
			continue // the caller was interrupted, and asks again
		}
		if errno != 0 {
			fmt.Fprintln(os.Stderr, "waiting for an fsync:", errno)
			os.Exit(1)
		}
		answer := syncAnswer{ID: call.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if atomic.LoadUint32(fails) != 0 {
			answer.Error, answer.Flags = -int32(unix.EIO), 0
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, listener, unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&answer)))
	}
}
