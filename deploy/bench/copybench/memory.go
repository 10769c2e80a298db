//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// watch asks the kernel every few milliseconds for the most memory that the
// process has had resident, until done is closed; the process must not have been
// waited for before its last moments are of no interest. What wait4 reports would
// not do: it counts the memory of the parent, which the child shares until it has
// become another program.
func watch(pid int, done <-chan struct{}) (mib func() float64) {
	var most float64
	over := make(chan struct{})
	go func() {
		defer close(over)
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		for {
			if now, ok := resident(pid); ok {
				most = max(most, now)
			}
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	}()
	return func() float64 {
		<-over
		return most
	}
}

func resident(pid int) (mib float64, ok bool) {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	self, serr := os.Executable()
	args, aerr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || serr != nil || aerr != nil || (exe == self && !strings.Contains(string(args), "\x00child\x00")) {
		return 0, false // not yet the other program
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib / 1024, err == nil
		}
	}
	return 0, false
}
