// Package evidence packs everything that a stranger needs to judge one image into
// one file, and checks such a file without a network and without trusting Dray.
package evidence
