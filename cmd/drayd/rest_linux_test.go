package main

import (
	"bufio"
	"slices"
	"strings"
	"testing"
)

func TestCleanMappings(t *testing.T) {
	entry := func(head string, counters ...string) string {
		return head + "\nSize: 100 kB\nRss: 50 kB\n" + strings.Join(counters, "\n") + "\nVmFlags: rd ex mr\n"
	}
	clean := []string{"Shared_Dirty: 0 kB", "Private_Dirty: 0 kB", "Anonymous: 0 kB", "Swap: 0 kB"}
	smaps := entry("00400000-00500000 r-xp 00000000 fe:00 12 /opt/drayd", clean...) +
		entry("00500000-00600000 r--p 00100000 fe:00 12 /opt/drayd", clean...) +
		entry("00600000-00700000 r--p 00200000 fe:00 12 /opt/drayd", "Private_Dirty: 4 kB", "Anonymous: 0 kB") +
		entry("00700000-00800000 r--p 00300000 fe:00 12 /opt/drayd", "Private_Dirty: 0 kB", "Anonymous: 4 kB") +
		entry("00800000-00900000 rw-p 00400000 fe:00 12 /opt/drayd", clean...) +
		entry("00900000-00a00000 r--s 00500000 fe:00 12 /opt/drayd", clean...) +
		entry("7f0000000000-7f0000100000 r-xp 00000000 fe:00 13 /usr/lib/libc.so.6", clean...) +
		entry("7f0000200000-7f0000300000 r-xp 00000000 00:00 0", clean...)
	got, err := cleanMappings(bufio.NewScanner(strings.NewReader(smaps)), "/opt/drayd")
	if err != nil {
		t.Fatal(err)
	}
	if want := []mapping{{0x400000, 0x500000}, {0x500000, 0x600000}}; !slices.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestUnmapProgram: a program goes on after it let go of itself.
func TestUnmapProgram(t *testing.T) {
	for range 20 {
		if err := unmapProgram(); err != nil {
			t.Fatal(err)
		}
		TestCleanMappings(t)
	}
}
