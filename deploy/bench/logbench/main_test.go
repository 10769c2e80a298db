//go:build linux

package main

import (
	"testing"

	"github.com/dray-project/dray/deploy/bench/benchtest"
)

func TestRun(t *testing.T) {
	benchtest.Run(t, run, []string{"steady load of 500 a second", "checkpoints"},
		"--n", "1", "--entries", "200", "--seconds", "1")
}
