//go:build linux && goexperiment.jsonv2

package main

import (
	"testing"

	"github.com/dray-project/dray/deploy/bench/benchtest"
)

func TestRun(t *testing.T) {
	benchtest.Run(t, run, []string{"re-match of 100 images", "the same, when the database changed what few of them hold"},
		"--images", "100", "--variants", "50", "--advisories", "1500", "--rival", "0")
}
