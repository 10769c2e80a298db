// Package stack starts the real parts that Dray works with on one machine:
// PostgreSQL, buildkitd, two registries of different kinds and a git server.
//
// The demo and the end-to-end tests share it. Everything that it starts lives
// under one directory and is found again there by process id and start time, so
// that a second start recognises what runs, and a stop, from whatever process,
// ends exactly that and leaves no mount, container or process behind. It needs
// Linux, and root where buildkitd is asked for.
package stack
