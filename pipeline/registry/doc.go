// Package registry talks to OCI registries: it assembles indexes, moves tags,
// and copies an image with everything that is attached to it.
//
// One Registry holds one HTTP transport for the whole process. Signing and
// scanning go through the same transport (see RemoteOptions), so that the limit
// of parallel requests, a registry's Retry-After, and the rule that credentials
// stay with their origin hold for all of them together.
package registry
