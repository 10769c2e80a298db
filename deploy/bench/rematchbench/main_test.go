//go:build linux && goexperiment.jsonv2

package main

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestRun: the whole measurement, in a small world. What it measures in it says nothing;
// that the world can be made and the questions have answers does.
func TestRun(t *testing.T) {
	bin := os.Getenv("DRAY_TEST_BIN")
	if bin == "" {
		if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
			t.Fatal("DRAY_TEST_BIN is not set: want the directory of dray-dev")
		}
		t.Skip("DRAY_TEST_BIN is not set: want the directory of dray-dev")
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--bin", bin, "--images", "100", "--variants", "50", "--advisories", "1500", "--rival", "0"}, &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s\n%s", code, &errs, &out)
	}
	for _, row := range []string{"re-match of 100 images", "the same, when the database changed what few of them hold"} {
		if !strings.Contains(out.String(), row) {
			t.Errorf("nothing is said of %q:\n%s", row, &out)
		}
	}
}
