//go:build !goexperiment.jsonv2

package scanner

import (
	"context"
	"errors"

	"github.com/dray-project/dray/pipeline"
)

var errNotCompiled = errors.New("this program was compiled without its scanner: " +
	"set GOEXPERIMENT=jsonv2 in the environment and build it again with Go 1.26")

// Scanner is empty in this build: see New.
type Scanner struct{}

var (
	_ pipeline.Scanner   = (*Scanner)(nil)
	_ pipeline.Rematcher = (*Scanner)(nil)
)

// New checks the configuration and then says what to set, because the library
// behind this package only compiles with GOEXPERIMENT=jsonv2.
func New(_ context.Context, c Config) (*Scanner, error) {
	if err := c.withDefaults().validate(); err != nil {
		return nil, err
	}
	return nil, errNotCompiled
}

// Scan returns an error: see New.
func (*Scanner) Scan(context.Context, pipeline.Image, []pipeline.PlatformImage) (pipeline.Report, error) {
	return pipeline.Report{}, pipeline.Permanent(errNotCompiled)
}

// Database returns an error: see New.
func (*Scanner) Database(context.Context) (pipeline.VulnerabilityDatabase, error) {
	return pipeline.VulnerabilityDatabase{}, pipeline.Permanent(errNotCompiled)
}

// Rematch returns an error: see New.
func (*Scanner) Rematch(context.Context, []pipeline.Analysis) (pipeline.VulnerabilityDatabase, []pipeline.Rematched, error) {
	return pipeline.VulnerabilityDatabase{}, nil, pipeline.Permanent(errNotCompiled)
}

// Changes returns an error: see New.
func (*Scanner) Changes(context.Context, pipeline.Digest) (pipeline.VulnerabilityDatabase, pipeline.Changes, error) {
	return pipeline.VulnerabilityDatabase{}, pipeline.Changes{}, pipeline.Permanent(errNotCompiled)
}

// Close does nothing.
func (*Scanner) Close() error { return nil }
