//go:build linux

package main

import (
	"testing"

	"github.com/dray-project/dray/deploy/bench/benchtest"
)

func TestRun(t *testing.T) {
	benchtest.Run(t, run, []string{"\nby name  ", "\nhottest package, promoted ever  ", "export of the hottest package: 40 items"},
		"--images", "40", "--packages", "20", "--n", "2", "--rounds", "1", "--shared-buffers", "128MB")
}
