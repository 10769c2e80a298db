package postgres_test

import (
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
)

var (
	_ pipeline.Store  = (*postgres.Store)(nil)
	_ pipeline.Locker = (*postgres.Store)(nil)
)
