//go:build linux && amd64

package faults

import (
	"debug/elf"
	"debug/gosym"
	"encoding/binary"
	"fmt"
	"os"
	"reflect"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// These tests need a clock that steps. They must not set the system's clock, and Go asks
// the kernel without a library in between. So a gateway replaces its own time.now, in
// memory, by a function that adds an offset from a file. The monotonic clock, which
// timers use, is unchanged, as it is when the system's clock is set.

// offset is the offset of the clock in nanoseconds. It is shared with the test.
var offset *int64

// steppedNow is time.now plus the offset.
func steppedNow() (sec int64, nsec int32, mono int64) {
	var wall, ever syscall.Timespec
	const realtime, monotonic = 0, 1
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, realtime, uintptr(unsafe.Pointer(&wall)), 0)
	_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, monotonic, uintptr(unsafe.Pointer(&ever)), 0)
	at := wall.Sec*1e9 + wall.Nsec + atomic.LoadInt64(offset)
	return at / 1e9, int32(at % 1e9), ever.Sec*1e9 + ever.Nsec
}

// patchClock makes this process use the clock with the offset in the file.
func patchClock(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	shared, err := syscall.Mmap(int(f.Fd()), 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping %s: %w", file, err)
	}
	offset = (*int64)(unsafe.Pointer(&shared[0]))
	entry, err := entryOf("time.now")
	if err != nil {
		return err
	}
	// mov rax, <address>; jmp rax
	jump := append([]byte{0x48, 0xb8}, make([]byte, 8)...)
	binary.LittleEndian.PutUint64(jump[2:], uint64(reflect.ValueOf(steppedNow).Pointer()))
	jump = append(jump, 0xff, 0xe0)
	page := entry &^ uintptr(os.Getpagesize()-1)
	text := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(nil), page)), 2*os.Getpagesize())
	if err := syscall.Mprotect(text, syscall.PROT_READ|syscall.PROT_WRITE|syscall.PROT_EXEC); err != nil {
		return fmt.Errorf("making time.now writable: %w", err)
	}
	copy(text[entry-page:], jump)
	return syscall.Mprotect(text, syscall.PROT_READ|syscall.PROT_EXEC)
}

// entryOf returns the entry point of a function of this program.
func entryOf(name string) (uintptr, error) {
	exe, err := elf.Open("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	defer exe.Close()
	lines, text := exe.Section(".gopclntab"), exe.Section(".text")
	if lines == nil || text == nil {
		return 0, fmt.Errorf("the program has no table of functions")
	}
	data, err := lines.Data()
	if err != nil {
		return 0, err
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(data, text.Addr))
	if err != nil {
		return 0, err
	}
	f := table.LookupFunc(name)
	if f == nil {
		return 0, fmt.Errorf("the program has no %s", name)
	}
	return uintptr(f.Entry), nil
}
