package pipeline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
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

// Provenance is what a statement of BuildType says of a build.
type Provenance struct {
	Builder string `json:"builder"` // the builder.id
	Source  string `json:"source"`  // "git+https://…"
	Ref     string `json:"ref"`
	Commit  string `json:"commit"`
	// Run that did the building.
	Run        RunID      `json:"run"`
	Platforms  []Platform `json:"platforms"`
	StartedOn  time.Time  `json:"startedOn"`
	FinishedOn time.Time  `json:"finishedOn"`
}

// ReadProvenance reads an in-toto statement whose signature and subject were
// checked. Its build type is BuildType, its parameters are those that this build
// type has and no others, and its first dependency is the source's commit; what
// is not so is an error. Whether it is the right builder and source is for the
// caller to say.
func ReadProvenance(statement json.RawMessage) (Provenance, error) {
	p, err := readProvenance(statement)
	if err != nil {
		return Provenance{}, err
	}
	d, source := p.BuildDefinition, p.BuildDefinition.ExternalParameters.Source
	return Provenance{
		Builder: p.RunDetails.Builder.ID, Source: source.URI, Ref: source.Ref, Commit: d.ResolvedDependencies[0].Digest["gitCommit"],
		Run: RunID(p.RunDetails.Metadata.InvocationID), Platforms: d.ExternalParameters.Platforms,
		StartedOn: p.RunDetails.Metadata.StartedOn, FinishedOn: p.RunDetails.Metadata.FinishedOn,
	}, nil
}

func readProvenance(statement json.RawMessage) (slsaProvenance, error) {
	var p slsaProvenance
	// A name that is there twice could be read in two ways.
	twice := &strictChecker{}
	if _, err := twice.read(json.NewDecoder(bytes.NewReader(statement)), "", 0); err != nil {
		return p, fmt.Errorf("provenance does not parse: %w", err)
	}
	if len(twice.problems) > 0 {
		return p, fmt.Errorf("provenance: %s", twice.problems[0])
	}
	var s struct {
		PredicateType string `json:"predicateType"`
		Predicate     struct {
			BuildDefinition struct {
				BuildType            string          `json:"buildType"`
				ExternalParameters   json.RawMessage `json:"externalParameters"`
				InternalParameters   json.RawMessage `json:"internalParameters"`
				ResolvedDependencies []resource      `json:"resolvedDependencies"`
			} `json:"buildDefinition"`
			RunDetails json.RawMessage `json:"runDetails"`
		} `json:"predicate"`
	}
	if err := json.Unmarshal(statement, &s); err != nil {
		return p, fmt.Errorf("provenance does not parse: %w", err)
	}
	def, d := s.Predicate.BuildDefinition, &p.BuildDefinition
	if s.PredicateType != PredicateProvenance {
		return p, fmt.Errorf("predicate type is %.200q, want %q", s.PredicateType, PredicateProvenance)
	}
	if def.BuildType != BuildType {
		return p, fmt.Errorf("build type is %.200q, want %q", def.BuildType, BuildType)
	}
	d.BuildType, d.ResolvedDependencies = def.BuildType, def.ResolvedDependencies
	if err := exactly(def.ExternalParameters, &d.ExternalParameters); err != nil {
		return p, fmt.Errorf("external parameters are not those of the build type: %w", err)
	}
	if err := exactly(def.InternalParameters, &d.InternalParameters); err != nil {
		return p, fmt.Errorf("internal parameters are not those of the build type: %w", err)
	}
	if err := json.Unmarshal(s.Predicate.RunDetails, &p.RunDetails); err != nil {
		return p, fmt.Errorf("run details do not parse: %w", err)
	}
	source := d.ExternalParameters.Source
	if len(d.ResolvedDependencies) == 0 || d.ResolvedDependencies[0].URI != source.URI+"@"+source.Ref || d.ResolvedDependencies[0].Digest["gitCommit"] == "" {
		return p, fmt.Errorf("the first resolved dependency is not the commit of %.200q", source.URI)
	}
	return p, nil
}

// exactly reads an object that has what T has and nothing else. A verifier that
// passed over a parameter would pass over what whoever pushed could do with it.
func exactly[T any](raw json.RawMessage, into *T) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	again, err := json.Marshal(into)
	if err != nil {
		return err
	}
	var was, is any
	if err := errors.Join(json.Unmarshal(raw, &was), json.Unmarshal(again, &is)); err != nil {
		return err
	}
	// The decoder takes names in any case, and leaves out what is missing.
	if !reflect.DeepEqual(was, is) {
		return errors.New("some are missing, empty or named differently")
	}
	return nil
}

// checkProvenance reports whether an in-toto statement is the provenance of a
// build by this builder from this source. The signature and the subject were
// checked by whoever read it.
func checkProvenance(statement json.RawMessage, builderID, cloneURL string) error {
	p, err := ReadProvenance(statement)
	switch {
	case err != nil:
		return err
	case p.Builder != builderID:
		return fmt.Errorf("built by %.200q, want %q", p.Builder, builderID)
	case p.Source != sourceURI(cloneURL):
		return fmt.Errorf("built from %.200q, want %q", p.Source, sourceURI(cloneURL))
	}
	return nil
}
