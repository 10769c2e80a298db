package pipeline

import "time"

// Project is a source repository that Dray watches, with where its images go.
// It is set on the server; nothing in it is read from a pushed commit.
type Project struct {
	Name string `json:"name"`
	// Forge is the kind of forge that sends its events: "github".
	Forge string `json:"forge"`
	// Source is the repository's full name at the forge: "acme/hello-go".
	Source string `json:"source"`
	// CloneURL is what buildkitd fetches. It never comes from an event.
	CloneURL string `json:"cloneURL"`
	// Repository is where images are built to.
	Repository string `json:"repository"`
	// Platforms to build when .dray.yaml does not narrow them.
	Platforms []Platform `json:"platforms"`
	// Latest also moves the tag "latest" forward with releases.
	Latest bool `json:"latest"`
	// Gate is the short form of rules that come before Rules: what an image must
	// be like to be signed and tagged.
	Gate  GateRules `json:"gate"`
	Rules []Rule    `json:"rules,omitempty"`
	// Environments in the order in which an image usually passes them.
	Environments []Environment `json:"environments"`
	// TrustedVEXKeys are the public keys (PEM) whose VEX documents count.
	TrustedVEXKeys []string `json:"trustedVEXKeys,omitempty"`
	// CacheRepository holds the build cache; empty means Repository.
	CacheRepository string `json:"cacheRepository,omitempty"`
	// Retention says what need not be kept for ever; nil: everything is kept.
	Retention *Retention `json:"retention,omitempty"`
	// Version of these settings, set by the store.
	Version int `json:"-"`
}

// Environment returns the environment of that name.
func (p Project) Environment(name string) (Environment, bool) {
	for _, e := range p.Environments {
		if e.Name == name {
			return e, true
		}
	}
	return Environment{}, false
}

// EventKind is what happened at the forge.
type EventKind string

// The events that Dray understands.
const (
	EventPush EventKind = "push"
	EventPing EventKind = "ping"
)

// Event is a forge's event in Dray's words.
type Event struct {
	Kind EventKind `json:"kind"`
	// Source is the repository's full name at the forge.
	Source string `json:"source"`
	// Ref is complete: "refs/heads/main" or "refs/tags/v1.0.0".
	Ref string `json:"ref"`
	// Before and After are what the ref named before and after the push: a
	// commit, or the tag object of an annotated tag. Empty when there was none.
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
	// Deleted: the ref is gone and there is nothing to build.
	Deleted bool   `json:"deleted,omitempty"`
	Pusher  string `json:"pusher,omitempty"`
	// Commits that the push brought, oldest first, as far as the forge lists them.
	Commits []Commit `json:"commits,omitempty"`
	// CommitsOmitted: there were older ones than those in Commits.
	CommitsOmitted bool `json:"commitsOmitted,omitempty"`
	// CompareURL shows the push at the forge.
	CompareURL string `json:"compareURL,omitempty"`
}

// Commit is one commit as its forge describes it. What it says of itself is for
// people to read and proves nothing.
type Commit struct {
	SHA    string    `json:"sha"`
	Title  string    `json:"title"` // the first line of its message
	Author string    `json:"author"`
	At     time.Time `json:"at"`
}

// Delivery is one webhook whose signature verified.
type Delivery struct {
	Forge      string    `json:"forge"`
	ID         string    `json:"id"`
	Project    string    `json:"project"`
	Event      Event     `json:"event"`
	BodyDigest Digest    `json:"bodyDigest"`
	ReceivedAt time.Time `json:"receivedAt"`
}

// Accepted is what became of a delivery.
type Accepted struct {
	// Run that the delivery started, or the one that its first copy started.
	// Empty when there is nothing to build.
	Run RunID `json:"run,omitempty"`
	// Duplicate: the same delivery, or the same event under another id, was
	// accepted before.
	Duplicate bool `json:"duplicate"`
	// Note says in words what happened.
	Note string `json:"note"`
}
