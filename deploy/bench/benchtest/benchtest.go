// Package benchtest runs a bench in a small world. What it measures there says nothing;
// that its world can be made, and what it asks has answers, does.
package benchtest

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
)

// Run runs a bench with the tests' programs and these arguments. It fails unless that
// ends well and says something of each of rows.
func Run(t *testing.T, run func(ctx context.Context, args []string, stdout, stderr io.Writer) int, rows []string, args ...string) {
	t.Helper()
	bin := os.Getenv("DRAY_TEST_BIN")
	if bin == "" {
		if os.Getenv("DRAY_TEST_REQUIRE") == "1" {
			t.Fatal("DRAY_TEST_BIN is not set: want the directory of dray-dev")
		}
		t.Skip("DRAY_TEST_BIN is not set: want the directory of dray-dev")
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), append([]string{"--bin", bin}, args...), &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s\n%s", code, &errs, &out)
	}
	for _, row := range rows {
		if !strings.Contains(out.String(), row) {
			t.Errorf("nothing is said of %q:\n%s", row, &out)
		}
	}
}
