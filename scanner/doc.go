// Package scanner finds out what is in an image and what is known against it,
// through Trivy, in process and without any network but the two registries:
// that of the image and that of the vulnerability database.
//
// Trivy keeps its database handle in a package variable, so a process has at
// most one open Scanner; New refuses a second one. Importing Trivy also
// replaces the process's default slog handler by one that buffers for ever: a
// program that uses this package calls slog.SetDefault with its own handler at
// start. New does it with Config.Log if the program has not.
package scanner
