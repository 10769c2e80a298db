package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
)

// cleaner is the real retention over a record and registries in memory. Only
// hello-go has rules.
type cleaner struct {
	*pipeline.Retainer
	store *keeping
	work  *sync.WaitGroup
}

// keeping is a record of one project with rules.
type keeping struct {
	*pipelinetest.Retentions
	mu      sync.Mutex
	applied bool
}

func (k *keeping) Retained(ctx context.Context, project string) (pipeline.Retained, error) {
	if project != apitest.HelloGo.Name {
		return pipeline.Retained{Project: pipeline.Project{Name: project}, Now: apitest.Now}, nil
	}
	return k.Retentions.Retained(ctx, project)
}

// Apply does the work as soon as it is asked for.
func (c *cleaner) Apply(ctx context.Context, project string, plan pipeline.Digest, by string) (pipeline.RetentionRun, error) {
	run, err := c.Retainer.Apply(ctx, project, plan, by)
	if err != nil {
		return run, err
	}
	c.store.mu.Lock()
	c.store.applied = true
	c.store.mu.Unlock()
	c.work.Go(func() {
		if err := c.Work(context.Background()); err != nil {
			panic(err) // nothing here fails
		}
	})
	return run, nil
}

func (c *cleaner) Retention(_ context.Context, project string) (pipeline.RetentionRun, error) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if project != apitest.HelloGo.Name || !c.store.applied {
		return pipeline.RetentionRun{}, fmt.Errorf("retention of %s: %w", project, pipeline.ErrNotFound)
	}
	return c.store.Last(), nil
}

// newCleaner keeps the newest two images of hello-go, and what was printed for 30
// days. Of the others, prod holds one, one is a release, and two go; with one of
// these somebody works.
func newCleaner(work *sync.WaitGroup) (*cleaner, error) {
	ago := func(days int) time.Time { return apitest.Now.AddDate(0, 0, -days) }
	project := apitest.HelloGo
	project.Retention = &pipeline.Retention{Images: &pipeline.ImageRetention{Keep: 2}, Logs: &pipeline.AgeRetention{For: pipeline.Duration(30 * 24 * time.Hour)}}
	state := pipeline.Retained{Project: project, Now: apitest.Now, Logs: []pipeline.LogRemoval{{Run: "run_00000000000000000007", EndedAt: ago(40)}}}
	registries := &pipelinetest.Repositories{}
	push := func(letter string, age int, tag string) *pipeline.RetainedImage {
		img := pipeline.RetainedImage{Image: pipeline.Image{Repository: project.Repository, Digest: apitest.Digest(letter)}, RecordedAt: ago(age)}
		registries.Push(project.Repository, img.Image.Digest, pipeline.Held{Size: 500, Blobs: []pipeline.Content{{Digest: pipelinetest.DigestOf("layer", letter), Size: 3 << 20}}})
		registries.Tag(project.Repository, tag, img.Image.Digest)
		img.Tags = []pipeline.RetainedTag{{Repository: project.Repository, Tag: tag, Since: ago(age)}}
		state.Images = append(state.Images, img)
		return &state.Images[len(state.Images)-1]
	}
	push("1", 1, "sha-1111111111111111111111111111111111111111")
	push("2", 2, "sha-2222222222222222222222222222222222222222")
	push("3", 90, "sha-3333333333333333333333333333333333333333").Places = []pipeline.RetainedPlace{
		{Environment: "prod", Image: pipeline.Image{Repository: apitest.Placed.Repository, Digest: apitest.Digest("3")}, Since: ago(80)}}
	push("4", 91, "sha-4444444444444444444444444444444444444444")
	push("5", 92, "sha-5555555555555555555555555555555555555555")
	push("6", 93, "1.0.0")
	registries.Push(apitest.Placed.Repository, apitest.Digest("3"), pipeline.Held{Size: 500})
	store := &keeping{Retentions: &pipelinetest.Retentions{State: state, Busy: map[pipeline.Digest]bool{apitest.Digest("5"): true}}}
	r, err := pipeline.NewRetainer(pipeline.RetentionConfig{Store: store, Pruner: registries, Locker: &registrytest.Locker{}, Log: slog.New(slog.DiscardHandler)})
	return &cleaner{Retainer: r, store: store, work: work}, err
}
