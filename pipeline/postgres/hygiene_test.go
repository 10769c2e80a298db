package postgres_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
)

// TestRecordKeepsHygiene: what is known of how an image was made comes back as
// it was recorded, in the record and in the details.
func TestRecordKeepsHygiene(t *testing.T) {
	s := newSample(t)
	p := pipelinetest.SampleProject("app")
	id := push(t, s, "app", "refs/heads/main", "one")
	src := pipeline.Source{CloneURL: p.CloneURL, Ref: "refs/heads/main", Commit: commit("one"), CommitTime: time.Now().UTC(), Bases: []pipeline.Material{},
		Lint: []pipeline.LintFinding{{Rule: "SecretsUsedInArgOrEnv", Line: 3, Detail: "ENV TOKEN", Remedy: "mount it"}}}
	hygiene := pipeline.Hygiene{Shells: []string{"/bin/sh"}, PackageManagers: []string{}, Setuid: []string{"/bin/su"},
		Secrets: []pipeline.ConfigSecret{{Where: "env", Name: "TOKEN\x00", Rule: "name"}}, Healthcheck: true, Size: 1 << 40, Compressed: 7, Wasted: 3,
		Layers: []pipeline.ImageLayer{{Digest: pipelinetest.DigestOf("layer"), Size: 5, CreatedBy: "RUN \u0000 x"}}}
	rec := pipeline.ImageRecord{Project: "app", Run: id,
		Built: pipeline.Built{Image: pipeline.Image{Repository: p.Repository, Digest: pipelinetest.DigestOf("index")}, Run: id, Source: src},
		Report: pipeline.Report{Platforms: []pipeline.PlatformReport{
			{Platform: "linux/amd64", Digest: pipelinetest.DigestOf("amd64"), User: "65532", Hygiene: &hygiene},
			{Platform: "linux/arm64", Digest: pipelinetest.DigestOf("arm64")}, // from before it was looked at
		}},
		Decision: pipeline.Decision{Passed: true},
		Summary:  pipeline.Sealed{Envelope: json.RawMessage(`{"payload":"e30="}`), Statement: pipelinetest.DigestOf("statement"), KeyID: "k"},
	}
	check(t, s.RecordImage(t.Context(), start(t, s, id.Job(), pipeline.StageRecord), rec))
	got, err := s.ImageRecord(t.Context(), "app", rec.Built.Image.Digest)
	check(t, err)
	if !reflect.DeepEqual(got.Report.Platforms[0].Hygiene, &hygiene) || got.Report.Platforms[1].Hygiene != nil {
		t.Errorf("the record has %+v", got.Report.Platforms)
	}
	if !reflect.DeepEqual(got.Built.Source.Lint, src.Lint) || string(got.Summary.Envelope) != string(rec.Summary.Envelope) || got.Summary.Statement != rec.Summary.Statement {
		t.Errorf("the record has the source %+v and the summary %s", got.Built.Source, got.Summary.Envelope)
	}
	details, err := s.ImageDetails(t.Context(), rec.Built.Image.Digest, "")
	check(t, err)
	if want := []pipeline.PlatformHygiene{{Platform: "linux/amd64", User: "65532", Hygiene: hygiene}}; !reflect.DeepEqual(details[0].Hygiene, want) {
		t.Errorf("the details have %+v", details[0].Hygiene)
	}
}
