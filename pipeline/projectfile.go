package pipeline

import (
	"crypto/x509"
	_ "embed"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
)

// What a project file says of itself.
const (
	ProjectFileVersion = "dray/v1"
	ProjectFileKind    = "Project"
)

// MaxProjectFile is the longest project file that is read, in bytes.
const MaxProjectFile = 256 << 10

//go:embed project.schema.json
var projectSchema []byte

// ProjectSchema is the JSON Schema (2020-12) of a project file.
func ProjectSchema() []byte { return slices.Clone(projectSchema) }

// ProjectFile is what people keep in a repository and apply: the part of a
// project's settings that says what may go where. Where the source is and who
// builds it stays in the server's own settings.
type ProjectFile struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	// Platforms to build; linux/amd64 when the file has none.
	Platforms []Platform `json:"platforms"`
	Latest    bool       `json:"latest,omitempty"`
	// Gate refuses critical findings when the file does not say otherwise; so
	// does every environment's.
	Gate           GateRules     `json:"gate"`
	Rules          []Rule        `json:"rules,omitempty"`
	Environments   []Environment `json:"environments"`
	TrustedVEXKeys []string      `json:"trustedVEXKeys,omitempty"`
	Retention      *Retention    `json:"retention,omitempty"`
}

// FieldProblem is one thing that is wrong with a file.
type FieldProblem struct {
	// Path of the field: "environments[1].approvals[0].role". Empty: the file.
	Path    string
	Message string
}

func (p FieldProblem) String() string {
	if p.Path == "" {
		return p.Message
	}
	return p.Path + ": " + p.Message
}

// FileError lists what is wrong with a file. It wraps ErrInvalid.
type FileError struct{ Problems []FieldProblem }

func (e *FileError) Error() string {
	parts := make([]string, 0, len(e.Problems))
	for _, p := range e.Problems {
		parts = append(parts, p.String())
	}
	return "project file: " + strings.Join(parts, "; ")
}

func (e *FileError) Unwrap() error { return ErrInvalid }

// ParseProjectFile reads a project file in JSON, strictly: a field that is not
// known, given twice or null is an error, and so is a value of another type.
// Repositories are expanded. The error is a *FileError. What rules mean is the
// Judge's to check.
func ParseProjectFile(raw []byte) (ProjectFile, error) {
	f := ProjectFile{Gate: GateRules{FailOn: SeverityCritical}}
	if len(raw) > MaxProjectFile {
		return f, &FileError{[]FieldProblem{{"", fmt.Sprintf("%d bytes; at most %d are read", len(raw), MaxProjectFile)}}}
	}
	tree, problems := strictJSON[ProjectFile](raw)
	if len(problems) > 0 {
		return f, &FileError{problems}
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, &FileError{[]FieldProblem{{"", err.Error()}}}
	}
	environments, _ := tree.values["environments"].([]any)
	for i := range f.Environments {
		object, _ := environments[i].(*jsonObject)
		if gate, _ := object.values["gate"].(*jsonObject); gate == nil || gate.values["failOn"] == nil {
			f.Environments[i].Gate.FailOn = SeverityCritical
		}
	}
	if len(f.Platforms) == 0 {
		f.Platforms = []Platform{"linux/amd64"}
	}
	if f.Environments == nil {
		f.Environments = []Environment{}
	}
	p := f.ApplyTo(Project{})
	f.Environments = p.Environments
	if problems := f.check(); len(problems) > 0 {
		return f, &FileError{problems}
	}
	if err := p.Check(); err != nil {
		return f, &FileError{[]FieldProblem{{"", plainMessage(err)}}}
	}
	return f, nil
}

// ApplyTo returns the project with what the file sets, repositories expanded.
func (f ProjectFile) ApplyTo(p Project) Project {
	p.Name, p.Platforms, p.Latest = f.Name, f.Platforms, f.Latest
	p.Gate, p.Rules, p.TrustedVEXKeys, p.Retention = f.Gate, f.Rules, f.TrustedVEXKeys, f.Retention
	p.Environments = slices.Clone(f.Environments)
	p.Expand()
	return p
}

// ProjectFileOf is the file by which a project's settings would be set again.
func ProjectFileOf(p Project) ProjectFile {
	p.Environments = slices.Clone(p.Environments)
	for i := range p.Environments {
		if b := p.Environments[i].BreakGlass; b != nil { // a file has no nulls
			p.Environments[i].BreakGlass = &BreakGlassRule{Roles: notNil(b.Roles), Overrides: notNil(b.Overrides)}
		}
	}
	return ProjectFile{APIVersion: ProjectFileVersion, Kind: ProjectFileKind, Name: p.Name, Platforms: notNil(p.Platforms), Latest: p.Latest,
		Gate: p.Gate, Rules: p.Rules, Environments: notNil(p.Environments), TrustedVEXKeys: p.TrustedVEXKeys,
		Retention: p.Retention}
}

// check looks at what a type cannot say.
func (f ProjectFile) check() (problems []FieldProblem) {
	bad := func(path, format string, args ...any) {
		problems = append(problems, FieldProblem{path, fmt.Sprintf(format, args...)})
	}
	if f.APIVersion != ProjectFileVersion {
		bad("apiVersion", "is %.40q: want %q", f.APIVersion, ProjectFileVersion)
	}
	if f.Kind != ProjectFileKind {
		bad("kind", "is %.40q: want %q", f.Kind, ProjectFileKind)
	}
	if f.Name == "" || len(f.Name) > 100 || strings.Trim(f.Name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		bad("name", "is %.120q: want lower-case letters, digits, hyphens and dots", f.Name)
	}
	for i, p := range f.Platforms {
		path := fmt.Sprintf("platforms[%d]", i)
		if _, err := ParsePlatform(string(p)); err != nil {
			bad(path, "%s", plainMessage(err))
		} else if slices.Contains(f.Platforms[:i], p) {
			bad(path, "%s is listed twice", p)
		}
	}
	for i, key := range f.TrustedVEXKeys {
		block, rest := pem.Decode([]byte(key))
		if block == nil || block.Type != "PUBLIC KEY" || len(strings.TrimSpace(string(rest))) > 0 {
			bad(fmt.Sprintf("trustedVEXKeys[%d]", i), `want one public key in PEM, which starts with "-----BEGIN PUBLIC KEY-----"`)
		} else if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			bad(fmt.Sprintf("trustedVEXKeys[%d]", i), "%v", err)
		}
	}
	checkRules("rules", f.Rules, bad)
	f.Retention.check("retention", bad)
	for i, e := range f.Environments {
		e.check(fmt.Sprintf("environments[%d].", i), bad)
	}
	return problems
}

func (e Environment) check(at string, bad func(path, format string, args ...any)) {
	checkRules(at+"rules", e.Rules, bad)
	checkApprovals(at+"approvals", e.Approvals, bad)
	if e.Rollback != nil {
		checkRules(at+"rollback.rules", e.Rollback.Rules, bad)
		checkApprovals(at+"rollback.approvals", e.Rollback.Approvals, bad)
	}
	for i, f := range e.Freezes {
		path := fmt.Sprintf("%sfreezes[%d]", at, i)
		switch {
		case f.Name == "":
			bad(path+".name", "is required")
		case f.Start == "":
			bad(path+".start", `is required, such as "2026-12-20T17:00"`)
		case f.For <= 0:
			bad(path+".for", `is required, such as "16h"`)
		}
	}
	if b := e.BreakGlass; b != nil && (len(b.Roles) == 0) != (len(b.Overrides) == 0) {
		bad(at+"breakGlass", "want both roles and overrides; or neither, which lets nobody override anything")
	}
}

func checkRules(at string, rules []Rule, bad func(path, format string, args ...any)) {
	for i, r := range rules {
		path := fmt.Sprintf("%s[%d]", at, i)
		switch {
		case r.Use == "" && r.Expr == "":
			bad(path, "want either use, a ready-made rule, or name and expr, a rule in CEL")
		case r.Use != "" && (r.Expr != "" || r.Name != ""):
			bad(path, "use names a ready-made rule, so name and expr have no place beside it")
		case r.Expr != "" && r.Name == "":
			bad(path+".name", "is required for a rule in CEL: decisions show it")
		case r.Expr != "" && r.With != nil:
			bad(path+".with", "are the arguments of a ready-made rule; expr takes none")
		}
	}
}

func checkApprovals(at string, rules []ApprovalRule, bad func(path, format string, args ...any)) {
	for i, r := range rules {
		path := fmt.Sprintf("%s[%d]", at, i)
		if !validName(r.Role) {
			bad(path+".role", "is %.60q: want a role, such as release-manager", r.Role)
		}
		if r.Count < 0 || r.Count > 100 {
			bad(path+".count", "is %d: want 1 to 100", r.Count)
		}
	}
}

// plainMessage leaves out the sentinel that an error's text ends with.
func plainMessage(err error) string { return strings.TrimSuffix(err.Error(), ": "+ErrInvalid.Error()) }
