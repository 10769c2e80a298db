// Package pipelinetest holds what the pipeline is tested with: a store and a
// world in memory that fail on demand at every effect and hold the pipeline to
// its promises, and the suite that every store must pass.
package pipelinetest
