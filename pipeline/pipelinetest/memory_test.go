package pipelinetest_test

import (
	"testing"

	"github.com/dray-project/dray/pipeline/pipelinetest"
)

func TestMemoryIsAStore(t *testing.T) {
	pipelinetest.TestStore(t, func(*testing.T) pipelinetest.Fixture {
		return pipelinetest.Fixture{Store: pipelinetest.NewMemory(nil)}
	})
}
