package pipelinetest_test

import (
	"testing"

	"github.com/dray-project/dray/pipeline/pipelinetest"
)

func TestMemoryKeepsPromotions(t *testing.T) {
	pipelinetest.TestPromotions(t, func(*testing.T) pipelinetest.PromotionStore { return pipelinetest.NewMemory(nil) })
}
