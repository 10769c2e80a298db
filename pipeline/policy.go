package pipeline

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"
)

// Judge evaluates gates. It knows the ready-made rules and compiles those that
// a project wrote itself; it looks at the facts that it is given and at nothing
// else, so that the same gate and the same facts always give the same decision.
type Judge interface {
	// Check returns an error that wraps ErrInvalid and names the rule, the
	// argument or the freeze that cannot be used. It is asked before settings
	// come into force.
	Check(Gate) error
	// Judge never fails: a rule that cannot be evaluated refuses, and says so.
	Judge(Gate, Facts) Decision
}

// Rule is one condition of a gate: either a ready-made one, by its name and
// arguments, or one in CEL.
type Rule struct {
	// Use names a ready-made rule: "severity", "no-shell", …
	Use string `json:"use,omitempty"`
	// With are the arguments of the ready-made rule, an object.
	With json.RawMessage `json:"with,omitempty"`

	// Name of a rule in CEL, as decisions show it.
	Name string `json:"name,omitempty"`
	// Expr is a CEL expression over the facts; true lets the image pass.
	Expr string `json:"expr,omitempty"`
	// Reason is what a refusal says, Remedy what would change it.
	Reason string `json:"reason,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// GateRules is the short form of the commonest rules.
type GateRules struct {
	// FailOn is the least severity that refuses an image. The zero value,
	// unknown, refuses every finding; settings default it to critical.
	FailOn Severity `json:"failOn"`
	// IgnoreUnfixed lets findings pass that have no fixed version yet.
	IgnoreUnfixed bool `json:"ignoreUnfixed,omitempty"`
	// AllowRoot lets an image pass whose process starts as root.
	AllowRoot bool `json:"allowRoot,omitempty"`
}

// Rules writes the short form out.
func (g GateRules) Rules() []Rule {
	with, _ := json.Marshal(map[string]any{"failOn": g.FailOn, "ignoreUnfixed": g.IgnoreUnfixed}) // cannot fail: text and a boolean
	rules := []Rule{{Use: "scanned"}, {Use: "severity", With: with}}
	if !g.AllowRoot {
		rules = append(rules, Rule{Use: "non-root"})
	}
	return rules
}

// Gate is everything that stands before a place: what images must be like, and
// what must have happened to them. The order of Rules is that of decisions.
type Gate struct {
	Rules []Rule `json:"rules"`
	// After are environments that the image must have reached, and not been
	// rolled back from; in each it must have stayed for Soak.
	After     []string       `json:"after,omitempty"`
	Soak      Duration       `json:"soak,omitempty"`
	Approvals []ApprovalRule `json:"approvals,omitempty"`
	Freezes   []Freeze       `json:"freezes,omitempty"`
	// BreakGlass says what an emergency may override; nil: the freezes only, by
	// somebody with the role admin.
	BreakGlass *BreakGlassRule `json:"breakGlass,omitempty"`
}

// Digest names the gate's contents: the sha256 of its JSON form.
func (g Gate) Digest() Digest {
	b, err := json.Marshal(g)
	if err != nil {
		return "" // a raw message that is no JSON; Check refuses it
	}
	return digestOf(b)
}

func digestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// ApprovalRule asks for approvals by people with a role.
type ApprovalRule struct {
	Role string `json:"role"`
	// Count of different people; 1 if zero.
	Count int `json:"count,omitempty"`
	// NotRequester: whoever asked for the promotion does not count.
	NotRequester bool `json:"notRequester,omitempty"`
}

// Freeze is a window in which nothing enters.
type Freeze struct {
	Name string `json:"name"`
	// TimeZone in which Start and the recurrence are meant, from the IANA
	// database: "Europe/Zurich". Empty means UTC.
	TimeZone string `json:"timeZone,omitempty"`
	// Start is the first window's beginning, without a zone: "2026-12-20T17:00".
	Start string `json:"start"`
	// For is how long each window lasts.
	For Duration `json:"for"`
	// Recur is a recurrence rule of RFC 5545 without its DTSTART:
	// "FREQ=WEEKLY;BYDAY=FR". Empty: there is one window.
	Recur string `json:"recur,omitempty"`
}

// BreakGlassRule says who may override what in an emergency.
type BreakGlassRule struct {
	// Roles of which the requester must have one.
	Roles []string `json:"roles"`
	// Overrides are names of rules: "freeze", "soak", "approvals".
	Overrides []string `json:"overrides"`
}

// What is going on when a gate is asked.
const (
	ActionBuild    = "build"
	ActionPromote  = "promote"
	ActionRollback = "rollback"
)

// Facts are what rules can look at. The JSON names are those that rules in CEL
// use; docs/reference/policy.md describes them.
type Facts struct {
	// Now is the server's clock.
	Now time.Time `json:"now"`
	// Action is "build", "promote" or "rollback".
	Action  string `json:"action"`
	Project string `json:"project"`
	// Version of the project's settings.
	Version int `json:"version"`
	// Environment to be entered; empty when an image was built.
	Environment string         `json:"environment"`
	Image       ImageFacts     `json:"image"`
	Findings    []FindingFact  `json:"findings"`
	Hygiene     HygieneFacts   `json:"hygiene"`
	Licenses    []LicenseFact  `json:"licenses"`
	Scan        ScanFacts      `json:"scan"`
	Signatures  []SignerFact   `json:"signatures"`
	Provenance  ProvenanceFact `json:"provenance"`
	// Reached are the environments that this digest was promoted to.
	Reached   []ReachedFact `json:"reached"`
	Approvals []Approval    `json:"approvals"`
	Request   RequestFacts  `json:"request"`
	// Ignored says in words what was offered as evidence and does not count: an
	// exception that expired, a VEX document by a key that is not trusted.
	Ignored []string `json:"ignored"`
}

// ImageFacts say which image is judged.
type ImageFacts struct {
	Repository string     `json:"repository"`
	Digest     Digest     `json:"digest"`
	Commit     string     `json:"commit"`
	Platforms  []Platform `json:"platforms"`
	// Versions are the semantic versions that it was released under, highest first.
	Versions []string  `json:"versions"`
	BuiltAt  time.Time `json:"builtAt"`
}

// FindingFact is a finding, once for each package version, whichever platforms
// have it.
type FindingFact struct {
	Finding
	Fixable   bool       `json:"fixable"`
	Platforms []Platform `json:"platforms"`
	// Suppressed: an exception or a VEX statement says that it does not count.
	Suppressed bool `json:"suppressed"`
	// Suppression says which, and by whom; nil when it is not suppressed.
	Suppression *Suppression `json:"suppression,omitempty"`
}

// Suppression says why a finding does not count.
type Suppression struct {
	By     string `json:"by"` // "exception" or "vex"
	ID     string `json:"id"`
	Author string `json:"author"`
	Reason string `json:"reason"`
	// ExpiresAt is nil for a VEX statement.
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
}

// HygieneFacts are the hygiene of all platforms together: the worst of each.
type HygieneFacts struct {
	// Known is false when the scan did not look at it; rules that need it refuse.
	Known           bool           `json:"known"`
	Root            bool           `json:"root"`
	Users           []string       `json:"users"` // "linux/amd64: 65532"
	Shells          []string       `json:"shells"`
	PackageManagers []string       `json:"packageManagers"`
	Setuid          []string       `json:"setuid"`
	Secrets         []ConfigSecret `json:"secrets"`
	Healthcheck     bool           `json:"healthcheck"`
	Size            int64          `json:"size"`
	Compressed      int64          `json:"compressed"`
	Wasted          int64          `json:"wasted"`
	Bases           []Material     `json:"bases"`
	// BasesPinned: the source names every base by digest.
	BasesPinned bool          `json:"basesPinned"`
	Lint        []LintFinding `json:"lint"`
}

// LicenseFact is a licence with the packages that are under it.
type LicenseFact struct {
	License  string   `json:"license"` // as the package has it, an SPDX expression where it is one
	Packages []string `json:"packages"`
}

// ScanFacts say how old what is known is.
type ScanFacts struct {
	Scanner           string    `json:"scanner"`
	At                time.Time `json:"at"`
	Database          Digest    `json:"database"`
	DatabaseUpdatedAt time.Time `json:"databaseUpdatedAt"`
	// Platforms that were scanned.
	Platforms []Platform `json:"platforms"`
}

// SignerFact is who signed every manifest of the image.
type SignerFact struct {
	// KeyID as Signature has it.
	KeyID string `json:"keyID"`
}

// ProvenanceFact is what the verified provenance says; Verified is false, and
// the rest empty, when an image was only just built.
type ProvenanceFact struct {
	Verified bool   `json:"verified"`
	Builder  string `json:"builder"`
	Source   string `json:"source"`
	Ref      string `json:"ref"`    // "refs/heads/main"
	Branch   string `json:"branch"` // "main", or empty
	Tag      string `json:"tag"`    // "v1.0.0", or empty
	// Fork: the commit came from somebody else's repository.
	Fork bool `json:"fork"`
}

// ReachedFact is an environment that the digest was promoted to.
type ReachedFact struct {
	Environment string `json:"environment"`
	// Since its first promotion that succeeded there and was not undone by a
	// rollback afterwards, by the server's clock.
	Since time.Time `json:"since"`
	// Current: it is what the environment has now.
	Current bool `json:"current"`
	// Withdrawn: the environment was rolled back from this digest since.
	Withdrawn bool `json:"withdrawn"`
}

// RequestFacts say who asked.
type RequestFacts struct {
	By    string   `json:"by"`
	Roles []string `json:"roles"`
	// BreakGlass is the reason that was given for an emergency; empty: it is none.
	BreakGlass string `json:"breakGlass"`
	// Plan is the digest of the difference that would be made; approvals of
	// another plan do not count.
	Plan Digest `json:"plan"`
}
