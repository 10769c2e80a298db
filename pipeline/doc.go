// Package pipeline is Dray's domain: what a run and a promotion are, the
// order in which their stages happen, and what must be true before a tag
// moves.
//
// It imports the standard library and a semver library only. Everything that
// touches the world (BuildKit, Trivy, cosign, registries, Postgres) stands
// behind an interface that is declared here, beside the code that uses it.
package pipeline
