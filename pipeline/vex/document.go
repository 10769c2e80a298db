package vex

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// contexts are those of OpenVEX 0.2.0; attestations have them as predicate types.
var contexts = []string{"https://openvex.dev/ns/v0.2.0", "https://openvex.dev/ns"}

var (
	statuses       = []string{pipeline.VEXNotAffected, pipeline.VEXFixed, pipeline.VEXAffected, pipeline.VEXUnderInvestigation}
	justifications = []string{
		"component_not_present", "vulnerable_code_not_present", "vulnerable_code_not_in_execute_path",
		"vulnerable_code_cannot_be_controlled_by_adversary", "inline_mitigations_already_exist",
	}
)

// document is an OpenVEX document, version 0.2.0.
type document struct {
	Context     string      `json:"@context"`
	Author      string      `json:"author"`
	Timestamp   *time.Time  `json:"timestamp"`
	LastUpdated *time.Time  `json:"last_updated"`
	Statements  []statement `json:"statements"`
}

type statement struct {
	Vulnerability struct {
		ID      string   `json:"@id"`
		Name    string   `json:"name"`
		Aliases []string `json:"aliases"`
	} `json:"vulnerability"`
	Timestamp       *time.Time `json:"timestamp"`
	Status          string     `json:"status"`
	Justification   string     `json:"justification"`
	ImpactStatement string     `json:"impact_statement"`
	Products        []struct {
		component
		Subcomponents []component `json:"subcomponents"`
	} `json:"products"`
	// Of version 0.0.1, where they narrowed all products.
	Subcomponents json.RawMessage `json:"subcomponents"`
}

// component is a piece of software by any of its names.
type component struct {
	ID          string            `json:"@id"`
	Identifiers map[string]string `json:"identifiers"`
	Hashes      map[string]string `json:"hashes"`
}

// names are all by which it can be matched: any one of them suffices.
func (c component) names() []string {
	names := []string{c.ID, c.Identifiers["purl"]}
	if hash := c.Hashes["sha-256"]; hash != "" {
		names = append(names, "sha256:"+strings.ToLower(hash))
	}
	names = slices.DeleteFunc(names, func(s string) bool { return s == "" })
	slices.Sort(names)
	return slices.Compact(names)
}

// parse reads a document whose signature has been verified.
func parse(doc pipeline.VEXDocument, keyID string) ([]pipeline.VEXStatement, error) {
	invalid := func(err error) error {
		return fmt.Errorf("not an OpenVEX document: %w: %w", err, pipeline.ErrInvalid)
	}
	if _, err := decode(doc.Document); err != nil {
		return nil, invalid(err)
	}
	var d document
	if err := json.Unmarshal(doc.Document, &d); err != nil {
		return nil, invalid(err)
	}
	if err := d.check(doc.UploadedAt); err != nil {
		return nil, invalid(err)
	}
	issued := *d.Timestamp
	if d.LastUpdated != nil && d.LastUpdated.After(issued) {
		issued = *d.LastUpdated
	}
	out := make([]pipeline.VEXStatement, 0, len(d.Statements))
	products := 0
	for i, s := range d.Statements {
		st := pipeline.VEXStatement{Document: doc.ID, Author: printable(d.Author), KeyID: keyID, Status: s.Status, At: d.Timestamp.UTC(), DocumentAt: issued.UTC()}
		if s.Timestamp != nil {
			st.At = s.Timestamp.UTC()
		}
		if err := s.read(&st, &products); err != nil {
			return nil, invalid(fmt.Errorf("statements[%d]: %w", i, err))
		}
		if late(st.At, doc.UploadedAt) {
			return nil, invalid(fmt.Errorf("statements[%d]: dated %s, after it was handed in", i, st.At.Format(time.RFC3339)))
		}
		out = append(out, st)
	}
	slices.SortStableFunc(out, func(a, b pipeline.VEXStatement) int { return a.At.Compare(b.At) })
	return out, nil
}

// late reports whether a time is later than the clocks of two machines can
// explain. It would override whatever is said of the same product from now on.
func late(t, uploaded time.Time) bool {
	return !uploaded.IsZero() && t.After(uploaded.Add(clockSlack))
}

func (d document) check(uploaded time.Time) error {
	switch {
	case !slices.Contains(contexts, d.Context):
		return fmt.Errorf("@context is %.100q, want %s", d.Context, contexts[0])
	case printable(d.Author) == "":
		return errors.New("author is missing")
	case d.Timestamp == nil || d.Timestamp.IsZero():
		return errors.New("timestamp is missing")
	case late(*d.Timestamp, uploaded):
		return fmt.Errorf("dated %s, after it was handed in", d.Timestamp.UTC().Format(time.RFC3339))
	case len(d.Statements) == 0:
		return errors.New("it has no statements")
	case len(d.Statements) > maxStatements:
		return fmt.Errorf("%d statements, more than the bound of %d", len(d.Statements), maxStatements)
	}
	return nil
}

// read fills in what the statement says. products counts what all statements
// of the document name.
func (s statement) read(st *pipeline.VEXStatement, products *int) error {
	if !slices.Contains(statuses, s.Status) {
		return fmt.Errorf("status is %.40q, want one of %s", s.Status, strings.Join(statuses, ", "))
	}
	if s.Justification != "" && !slices.Contains(justifications, s.Justification) {
		return fmt.Errorf("justification is %.60q, want one of %s", s.Justification, strings.Join(justifications, ", "))
	}
	st.Justification = cmp.Or(s.Justification, printable(s.ImpactStatement))
	if len(s.Subcomponents) > 0 {
		return errors.New("subcomponents belong to a product; want OpenVEX 0.2.0")
	}
	v := s.Vulnerability
	if v.Name == "" {
		return errors.New("vulnerability.name is missing")
	}
	if len(v.Aliases) > maxAliases {
		return fmt.Errorf("the vulnerability has %d aliases, more than the bound of %d", len(v.Aliases), maxAliases)
	}
	for _, name := range append([]string{v.Name, v.ID}, v.Aliases...) {
		if len(name) > maxID {
			return fmt.Errorf("the vulnerability has a name of %d bytes, more than the bound of %d", len(name), maxID)
		}
		if name != "" && !slices.Contains(st.Vulnerability, name) {
			st.Vulnerability = append(st.Vulnerability, name)
		}
	}
	count := func(names []string) error {
		if *products += len(names); *products > maxProducts {
			return fmt.Errorf("the document names more than %d products and subcomponents", maxProducts)
		}
		if slices.ContainsFunc(names, func(n string) bool { return len(n) > maxID }) {
			return fmt.Errorf("a product has a name of more than %d bytes", maxID)
		}
		return nil
	}
	for _, p := range s.Products {
		var within []string
		for _, c := range p.Subcomponents {
			names := c.names()
			if len(names) == 0 {
				// It narrows the product to something that nothing is, and must
				// not be taken for the product as a whole.
				names = []string{""}
			}
			within = append(within, names...)
		}
		for _, name := range p.names() {
			if err := count(append([]string{name}, within...)); err != nil {
				return err
			}
			st.Products = append(st.Products, pipeline.VEXProduct{ID: name, Subcomponents: within})
		}
	}
	return nil
}
