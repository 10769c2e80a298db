//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// bulkRows copies a large image, past the proxies, whose work would be measured
// as well. The tools take turns, so that the machine's moods meet all of them.
func (s *site) bulkRows(ctx context.Context) error {
	src := s.direct[0] + "/bench/bulk"
	digest, err := s.pushBulk(ctx, src)
	if err != nil {
		return fmt.Errorf("push the large image: %w", err)
	}
	tools := []string{"dray", "crane", "regctl", "skopeo"}
	seconds, memory := map[string][]float64{}, map[string]float64{}
	for range s.n {
		for _, tool := range tools {
			dst := s.fresh(s.direct[1])
			took, mib, err := s.bulkOnce(ctx, tool, src, digest, dst)
			if errors.Is(err, exec.ErrNotFound) {
				continue
			}
			if err != nil {
				return fmt.Errorf("bulk: %s: %w", tool, err)
			}
			seconds[tool] = append(seconds[tool], took)
			memory[tool] = max(memory[tool], mib)
		}
	}
	fmt.Fprintf(s.out, "\n%-36s %-26s %9s %9s %9s %7s %7s %7s\n", s.kindName, "", "s", "MiB/s", "peak MiB", "", "ratio", "mark")
	for i, tool := range tools {
		label, mark := "", ""
		if i == 0 {
			label, mark = fmt.Sprintf("bulk, %d MiB", s.bulk), "1.05"
		}
		if len(seconds[tool]) == 0 {
			fmt.Fprintf(s.out, "%-36s %-26s %9s\n", label, tool, "not installed")
			continue
		}
		t := median(seconds[tool])
		ratio := make([]float64, len(seconds[tool]))
		for j := range ratio {
			ratio[j] = seconds[tool][j] / seconds["crane"][j]
		}
		fmt.Fprintf(s.out, "%-36s %-26s %9.2f %9.0f %9.1f %7s %7.2f %7s\n", label, tool, t, float64(s.bulk)/t, memory[tool], "", median(ratio), mark)
	}
	fmt.Fprintf(s.out, "%-36s ratio: the median of the rounds' ratios to crane; peak: mark 64 MiB\n", "")
	return nil
}

// pushBulk pushes in a process of its own, because it holds the image in memory.
func (s *site) pushBulk(ctx context.Context, repo string) (digest string, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, self, "push", repo, strconv.Itoa(s.bulk))
	cmd.Stderr = s.log
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// bulkOnce measures whole processes, Dray's too.
func (s *site) bulkOnce(ctx context.Context, tool, src, digest, dst string) (seconds, mib float64, err error) {
	began := time.Now()
	if tool == "dray" {
		d, err := startDray(ctx, s.direct[0], s.direct[1])
		if err != nil {
			return 0, 0, err
		}
		done := make(chan struct{})
		most := watch(d.cmd.Process.Pid, done)
		_, err = d.do("copy "+src+"@"+digest+" "+dst, "tag "+dst+"@"+digest+" v1")
		close(done)
		mib = most()
		d.stop()
		return time.Since(began).Seconds(), mib, err
	}
	mib, err = s.command(ctx, tool, false, src+":v1", dst+":v1")
	return time.Since(began).Seconds(), mib, err
}
