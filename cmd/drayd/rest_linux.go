package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unmapProgram lets go of the pages of the program file that are mapped. The
// program is large and Linux maps much more of it than was ever run; mapped
// pages count as this process's memory and are the last that the kernel gives
// up. Unmapped, they stay in the page cache for as long as there is room, and
// what is run next is mapped again without reading the disk.
//
// Only mappings that nothing was ever written to are touched: dropping those
// loses nothing.
func unmapProgram() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	mappings, err := cleanMappings(bufio.NewScanner(f), self)
	if err != nil {
		return err
	}
	var failed []error
	for _, m := range mappings {
		if _, _, e := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); e != 0 {
			failed = append(failed, fmt.Errorf("madvise %x-%x: %w", m.start, m.end, e))
		}
	}
	return errors.Join(failed...)
}

type mapping struct{ start, end uintptr }

// cleanMappings finds, in the form of /proc/PID/smaps (proc(5)), the mappings
// of a file that are not writable and have no page of their own.
func cleanMappings(lines *bufio.Scanner, file string) ([]mapping, error) {
	var out []mapping
	var current *mapping
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 0 {
			continue
		}
		if strings.HasSuffix(f[0], ":") {
			// Written pages are anonymous or dirty, whichever way they came to be.
			if written := f[0] == "Anonymous:" || f[0] == "Private_Dirty:" || f[0] == "Shared_Dirty:" || f[0] == "Swap:"; written && current != nil && f[1] != "0" {
				current = nil
			}
			if f[0] == "VmFlags:" && current != nil {
				out = append(out, *current)
				current = nil
			}
			continue
		}
		current = nil
		if len(f) < 6 || f[len(f)-1] != file || f[1][0] != 'r' || f[1][1] != '-' || f[1][3] != 'p' {
			continue
		}
		from, to, ok := strings.Cut(f[0], "-")
		if !ok {
			return nil, fmt.Errorf("a mapping without an end: %q", f[0])
		}
		start, err := strconv.ParseUint(from, 16, 64)
		if err != nil {
			return nil, err
		}
		end, err := strconv.ParseUint(to, 16, 64)
		if err != nil {
			return nil, err
		}
		current = &mapping{uintptr(start), uintptr(end)}
	}
	return out, lines.Err()
}
