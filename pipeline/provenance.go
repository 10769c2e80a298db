package pipeline

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// BuildType of the provenance; the page says what the parameters mean.
const BuildType = "https://github.com/dray-project/dray/blob/main/docs/reference/build-type.md#v1"

// slsaProvenance is the predicate of https://slsa.dev/provenance/v1, as far as
// Dray fills it.
type slsaProvenance struct {
	BuildDefinition struct {
		BuildType            string             `json:"buildType"`
		ExternalParameters   externalParameters `json:"externalParameters"`
		InternalParameters   internalParameters `json:"internalParameters"`
		ResolvedDependencies []resource         `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder  slsaBuilder  `json:"builder"`
		Metadata slsaMetadata `json:"metadata"`
	} `json:"runDetails"`
}

// externalParameters is what whoever pushed could choose.
type externalParameters struct {
	Source struct {
		URI string `json:"uri"`
		Ref string `json:"ref"`
	} `json:"source"`
	Context    string            `json:"context"`
	Dockerfile string            `json:"dockerfile"`
	Target     string            `json:"target,omitempty"`
	Args       map[string]string `json:"args,omitempty"`
	Platforms  []Platform        `json:"platforms"`
}

// internalParameters is what the server chose.
type internalParameters struct {
	SourceDateEpoch int64 `json:"sourceDateEpoch"`
}

type resource struct {
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest"`
}

type slsaBuilder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

type slsaMetadata struct {
	InvocationID string    `json:"invocationId"`
	StartedOn    time.Time `json:"startedOn"`
	FinishedOn   time.Time `json:"finishedOn"`
}

// provenance states how an image was built, from what Dray itself knows. It is
// a pure function of its arguments: a repeated attempt attests the same bytes.
func provenance(builderID string, b Built) (json.RawMessage, error) {
	var p slsaProvenance
	d := &p.BuildDefinition
	d.BuildType = BuildType
	d.ExternalParameters.Source.URI = sourceURI(b.Source.CloneURL)
	d.ExternalParameters.Source.Ref = b.Source.Ref
	d.ExternalParameters.Context = b.Source.Plan.Context
	d.ExternalParameters.Dockerfile = b.Source.Plan.Dockerfile
	d.ExternalParameters.Target = b.Source.Plan.Target
	d.ExternalParameters.Args = b.Source.Plan.Args
	d.ExternalParameters.Platforms = b.Source.Plan.Platforms
	d.InternalParameters.SourceDateEpoch = b.Source.CommitTime.Unix()
	d.ResolvedDependencies = []resource{{
		URI:    sourceURI(b.Source.CloneURL) + "@" + b.Source.Ref,
		Digest: map[string]string{"gitCommit": b.Source.Commit},
	}}
	for _, m := range b.Source.Bases {
		d.ResolvedDependencies = append(d.ResolvedDependencies, resource{
			URI: m.URI, Digest: map[string]string{"sha256": m.Digest.Hex()},
		})
	}
	p.RunDetails.Builder = slsaBuilder{ID: builderID, Version: map[string]string{"buildkitd": b.Builder}}
	p.RunDetails.Metadata = slsaMetadata{InvocationID: string(b.Run), StartedOn: b.StartedAt.UTC(), FinishedOn: b.FinishedAt.UTC()}
	return json.Marshal(p)
}

func sourceURI(cloneURL string) string { return "git+" + strings.TrimPrefix(cloneURL, "git+") }

// checkProvenance reports whether an in-toto statement is the provenance of a
// build by this builder from this source. The signature and the subject were
// checked by whoever read it.
func checkProvenance(statement json.RawMessage, builderID, cloneURL string) error {
	var s struct {
		PredicateType string         `json:"predicateType"`
		Predicate     slsaProvenance `json:"predicate"`
	}
	if err := json.Unmarshal(statement, &s); err != nil {
		return fmt.Errorf("provenance does not parse: %w", err)
	}
	switch def, builder := s.Predicate.BuildDefinition, s.Predicate.RunDetails.Builder.ID; {
	case s.PredicateType != PredicateProvenance:
		return fmt.Errorf("predicate type is %q, want %q", s.PredicateType, PredicateProvenance)
	case builder != builderID:
		return fmt.Errorf("built by %q, want %q", builder, builderID)
	case def.BuildType != BuildType:
		return fmt.Errorf("build type is %q, want %q", def.BuildType, BuildType)
	case def.ExternalParameters.Source.URI != sourceURI(cloneURL):
		return fmt.Errorf("built from %q, want %q", def.ExternalParameters.Source.URI, sourceURI(cloneURL))
	}
	return nil
}
