package pipeline_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
)

// retry runs a run over again, to its end.
func (b *bundle) retry(id pipeline.RunID) pipeline.Run {
	b.t.Helper()
	r, created, err := b.Store.Retry(b.t.Context(), id, "grace")
	if err != nil || !created {
		b.t.Fatalf("retry %s: %+v, %v", id, r, err)
	}
	if err := b.p.Run(b.t.Context(), r.ID); err != nil {
		b.t.Fatal(err)
	}
	return b.run(r.ID)
}

// TestRetryOfARunThatFailedAnywhere: wherever the first run gave up, with the
// effect done or not, the retry goes through and there is one image.
func TestRetryOfARunThatFailedAnywhere(t *testing.T) {
	clean := setup(t)
	id := clean.push("refs/tags/v1.0.0", commitA)
	clean.Faults.Arm(0, 0)
	if err := clean.p.Run(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	effects := clean.Faults.Trace()
	for n := 1; n <= len(effects); n++ {
		for _, mode := range []pipelinetest.Mode{pipelinetest.FailBefore, pipelinetest.FailAfter} {
			t.Run(fmt.Sprintf("%03d %s %s", n, effects[n-1], mode), func(t *testing.T) {
				b := setup(t)
				first := b.push("refs/tags/v1.0.0", commitA)
				b.Faults.Arm(n, mode)
				err := b.p.Run(t.Context(), first)
				if b.run(first).State.Final() {
					return // the fault hit the answer to the last write, or one that says no anyway
				}
				if !errors.Is(err, pipelinetest.ErrInjected) {
					t.Fatal(err)
				}
				if err := b.Store.End(t.Context(), first.Job(), pipeline.Ending{State: pipeline.StateFailed, Reason: "gave up"}); err != nil {
					t.Fatal(err)
				}
				r := b.retry(first)
				if r.State != pipeline.StateSucceeded || r.RetryOf != first || r.Commit != commitA {
					t.Fatalf("the retry is %+v", r)
				}
				wantTags(t, b.TagsOf(devRepo), r.Image.Digest, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
				for _, rec := range b.Store.Images() {
					if rec.Built.Image != *r.Image {
						t.Errorf("run %s recorded %s, the retry %s", rec.Run, rec.Built.Image, r.Image)
					}
				}
			})
		}
	}
}

// TestRetryAfterARefusal: an image is looked at again when what the gate goes
// by has changed, and is refused again as long as it has not.
func TestRetryAfterARefusal(t *testing.T) {
	b := setup(t)
	b.Findings[commitA] = []pipeline.Finding{{ID: "CVE-1", Severity: pipeline.SeverityCritical, Package: "p", Version: "1"}}
	first := b.release("1.0.0", commitA)
	second := b.retry(first.ID)
	if first.State != pipeline.StateRefused || second.State != pipeline.StateRefused {
		t.Fatalf("the runs are %s and %s, want both refused", first.State, second.State)
	}
	if tags := b.TagsOf(devRepo); len(tags) != 0 {
		t.Fatalf("an image that was refused has the tags %v", tags)
	}
	delete(b.Findings, commitA)
	third := b.retry(second.ID)
	if third.State != pipeline.StateSucceeded {
		t.Fatalf("the third run is %s: %s", third.State, third.Reason)
	}
	wantTags(t, b.TagsOf(devRepo), third.Image.Digest, "sha-aaaaaaaaaaaa", "1.0.0", "1.0", "1", "latest")
}
