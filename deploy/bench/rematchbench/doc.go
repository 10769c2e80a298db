//go:build !linux || !goexperiment.jsonv2

// Command dray-rematchbench needs Linux and GOEXPERIMENT=jsonv2, with which the
// Makefile builds it.
package main

import "os"

func main() {
	_, _ = os.Stderr.WriteString("dray-rematchbench: build it on Linux with GOEXPERIMENT=jsonv2 (make bench-rematch)\n")
	os.Exit(1)
}
