package main

import (
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
)

// retentionEvery is how soon a plan that was applied is carried out, and what
// was interrupted gone on with.
const retentionEvery = 5 * time.Second

// retention is what the API serves of it.
type retention struct {
	*pipeline.Retainer
	*postgres.Store
}

func (p *parts) openRetainer() (err error) {
	p.retainer, err = pipeline.NewRetainer(pipeline.RetentionConfig{
		Store: p.store, Pruner: p.registry, Locker: p.store, Mask: pipeline.NewMasker(p.settings.Secrets()...), Log: p.log,
	})
	return err
}

// retain is the work of retention, one process of all at a time.
func (p *parts) retain() postgres.Periodic {
	return postgres.Periodic{Name: "retention", Every: retentionEvery, Do: p.retainer.Work,
		Failed: "what retention lets go could not all be removed; it is tried again"}
}
