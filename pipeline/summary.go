package pipeline

import (
	"encoding/json"
	"fmt"
	"net/url"
	"time"
)

// summary is the predicate of https://slsa.dev/verification_summary/v1.
type summary struct {
	Verifier struct {
		ID string `json:"id"`
	} `json:"verifier"`
	TimeVerified time.Time `json:"timeVerified"`
	// ResourceURI is the environment, so that a summary for one environment
	// says nothing of another.
	ResourceURI        string            `json:"resourceUri"`
	Policy             resourceRef       `json:"policy"`
	InputAttestations  []resourceRef     `json:"inputAttestations"`
	VerificationResult string            `json:"verificationResult"`
	VerifiedLevels     []string          `json:"verifiedLevels"`
	Dray               map[string]string `json:"https://github.com/dray-project/dray/decision"`
}

type resourceRef struct {
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest"`
}

// ProjectURI names a project's builds, EnvironmentURI one of its environments.
func (p *Pipeline) ProjectURI(project string) string {
	return p.BaseURL + "/projects/" + url.PathEscape(project)
}

// EnvironmentURI is the resourceUri of summaries about that environment.
func (p *Pipeline) EnvironmentURI(project, environment string) string {
	return p.ProjectURI(project) + "/environments/" + url.PathEscape(environment)
}

// verifiedLevel is what a decision that passed stands for. A shared buildkitd
// does not isolate builds as level 3 wants it.
const verifiedLevel = "SLSA_BUILD_LEVEL_2"

// summarise states a decision. It is a pure function of its arguments, so that
// a repeated attempt attests the same bytes.
func (p *Pipeline) summarise(d Decision, inputs []Verified) (Statement, error) {
	var s summary
	s.Verifier.ID = p.BaseURL
	s.TimeVerified = d.EvaluatedAt.UTC()
	s.ResourceURI = p.ProjectURI(d.Policy.Project)
	if d.Policy.Environment != "" {
		s.ResourceURI = p.EnvironmentURI(d.Policy.Project, d.Policy.Environment)
	}
	s.Policy = resourceRef{
		URI:    fmt.Sprintf("%s/api/v1/projects/%s/versions/%d", p.BaseURL, url.PathEscape(d.Policy.Project), d.Policy.Version),
		Digest: map[string]string{"sha256": d.Policy.Digest.Hex()},
	}
	s.InputAttestations = []resourceRef{}
	for _, v := range inputs {
		for _, a := range v.Attestations {
			s.InputAttestations = append(s.InputAttestations, resourceRef{
				URI:    a.Image.Repository + "@" + string(a.Manifest),
				Digest: map[string]string{"sha256": a.Manifest.Hex()},
			})
		}
	}
	s.VerificationResult, s.VerifiedLevels = "FAILED", []string{"FAILED"}
	if d.Passed {
		s.VerificationResult, s.VerifiedLevels = "PASSED", []string{verifiedLevel}
	}
	s.Dray = map[string]string{"database": string(d.Database.Digest)}
	if d.Plan != "" {
		s.Dray["plan"] = string(d.Plan)
	}
	if b := d.BreakGlass; b != nil {
		s.Dray["breakGlassBy"], s.Dray["breakGlassReason"] = b.By, b.Reason
	}
	predicate, err := json.Marshal(s)
	return Statement{PredicateType: PredicateSummary, Predicate: predicate}, err
}
