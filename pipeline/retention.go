package pipeline

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Retention says what of a project need not be kept for ever. What it does not
// speak of is kept. Only the content of registries, and what builds printed, ever
// goes: the record of an image, its decisions and the log stay.
type Retention struct {
	// Auto applies the plan by itself, every so often. Without it, a plan is
	// applied when somebody says so.
	Auto   bool            `json:"auto,omitempty"`
	Images *ImageRetention `json:"images,omitempty"`
	// Promoted lets go of images that were promoted once, so long after they were
	// last promoted. Never what an environment holds or may go back to. Nil: what
	// was ever promoted is kept.
	Promoted *AgeRetention `json:"promoted,omitempty"`
	// Logs are what builds printed, counted from the end of their run.
	Logs *AgeRetention `json:"logs,omitempty"`
	// Caches are build caches, counted from the last build that could have used
	// them.
	Caches *AgeRetention `json:"caches,omitempty"`
	Tags   *TagRetention `json:"tags,omitempty"`
}

// ImageRetention keeps an image that is among the newest, or young, or tagged.
type ImageRetention struct {
	// Keep is how many of the newest stay; 0: none for that reason.
	Keep int `json:"keep,omitempty"`
	// For is how long an image stays after it was last recorded.
	For Duration `json:"for,omitempty"`
	// KeepTagged is which tags keep an image: KeepReleases (also if empty) or KeepAll.
	KeepTagged string `json:"keepTagged,omitempty"`
}

// What ImageRetention.KeepTagged can be.
const (
	// KeepReleases: every tag but those that name a commit. These go with their
	// image.
	KeepReleases = "releases"
	// KeepAll: every tag.
	KeepAll = "all"
)

// AgeRetention keeps something for a time.
type AgeRetention struct {
	For Duration `json:"for"`
}

// TagRetention lets go of tags whose image stays. Tags of versions always stay.
type TagRetention struct {
	// SHA is for the tags that name a commit, where images are built to.
	SHA *AgeRetention `json:"sha,omitempty"`
}

// MinRetention is the least time that anything stays, whatever the rules say.
const MinRetention = 24 * time.Hour

// RollbackDepth is how many images before the one that an environment holds
// always stay, so that it can go back to them.
const RollbackDepth = 3

// check looks at what a type cannot say.
func (r *Retention) check(at string, bad func(path, format string, args ...any)) {
	if r == nil {
		return
	}
	age := func(path string, a *AgeRetention) {
		if a != nil && a.For.Std() < MinRetention {
			bad(at+path+".for", "is %s: want at least %s", a.For, Duration(MinRetention))
		}
	}
	age(".promoted", r.Promoted)
	age(".logs", r.Logs)
	age(".caches", r.Caches)
	if r.Tags != nil {
		age(".tags.sha", r.Tags.SHA)
	}
	if i := r.Images; i != nil {
		switch {
		case i.Keep < 0 || i.Keep > 100_000:
			bad(at+".images.keep", "is %d: want 0 to 100000", i.Keep)
		case i.Keep == 0 && i.For == 0:
			bad(at+".images", "want keep, for or both: nothing would be kept otherwise")
		}
		if i.For != 0 && i.For.Std() < MinRetention {
			bad(at+".images.for", "is %s: want at least %s", i.For, Duration(MinRetention))
		}
		if i.KeepTagged != "" && i.KeepTagged != KeepReleases && i.KeepTagged != KeepAll {
			bad(at+".images.keepTagged", "is %.40q: want %s or %s", i.KeepTagged, KeepReleases, KeepAll)
		}
	}
	if r.Promoted != nil && r.Images == nil {
		bad(at+".promoted", "is an exception to images, and there is no images")
	}
}

// Kinds of what retention removes.
const (
	RemoveImage = "image" // with its tags and all that is attached to it
	RemoveTag   = "tag"   // the tag alone
	RemoveCache = "cache" // a build cache's tag and manifest
)

// Removal is one thing that goes from one repository.
type Removal struct {
	Kind string `json:"kind"`
	// Environment whose repository it is; empty: where images are built to.
	Environment string `json:"environment,omitempty"`
	// Image is the manifest that it is about. Of a RemoveTag, it stays.
	Image Image `json:"image"`
	// Tags that go, sorted. They name Image and nothing else.
	Tags []string `json:"tags"`
	// Manifests that go, in the order in which they do: what is attached, the
	// image, and those of its platforms that nothing else holds.
	Manifests []Digest `json:"manifests"`
	// Bytes that nothing else in the repository needs, as far as its manifests
	// say. They are free when the registry has collected its garbage.
	Bytes int64 `json:"bytes"`
	// Reason says in words which rule lets it go.
	Reason string `json:"reason"`
}

// Kept is an image or a tag that a rule looked at and that stays.
type Kept struct {
	Environment string `json:"environment,omitempty"`
	Image       Image  `json:"image"`
	Tag         string `json:"tag,omitempty"` // of a tag or a cache
	Reason      string `json:"reason"`
}

// LogRemoval is what builds printed that goes: log lines and build steps. What
// says how a run went stays.
type LogRemoval struct {
	Run     RunID     `json:"run"`
	EndedAt time.Time `json:"endedAt"`
}

// RetentionPlan is what the rules of a project would remove now.
type RetentionPlan struct {
	Project   string     `json:"project"`
	Retention *Retention `json:"retention,omitempty"` // nil: nothing is ever removed
	// At is the moment that ages were counted to: a full hour, so that a plan
	// stays the same for a while.
	At     time.Time    `json:"at"`
	Remove []Removal    `json:"remove"`
	Keep   []Kept       `json:"keep"`
	Logs   []LogRemoval `json:"logs"`
	Bytes  int64        `json:"bytes"` // of all removals
	// More: a plan is bounded, and there would be more to remove after this one.
	More bool `json:"more,omitempty"`
	// Digest binds what goes: an apply names it.
	Digest Digest `json:"digest"`
}

// Empty reports whether nothing would go.
func (p RetentionPlan) Empty() bool { return len(p.Remove)+len(p.Logs) == 0 }

// Outcomes of a removal.
const (
	PruneRemoved = "removed"
	// PruneSkipped: somebody works with it by now, or it is not as planned.
	PruneSkipped = "skipped"
	// PruneBlocked: the registry does not do it.
	PruneBlocked = "blocked"
)

// RemovalOutcome is what became of a removal.
type RemovalOutcome struct {
	Removal
	Outcome string `json:"outcome"`
	// Detail says why it was not removed.
	Detail string `json:"detail,omitempty"`
}

// RetentionRun is a plan that somebody had applied, and what became of it.
type RetentionRun struct {
	ID          string     `json:"id"` // "ret_" and 20 characters
	Project     string     `json:"project"`
	Plan        Digest     `json:"plan"`
	RequestedBy string     `json:"requestedBy"` // Automatic when nobody asked
	RequestedAt time.Time  `json:"requestedAt"`
	FinishedAt  *time.Time `json:"finishedAt,omitempty"`
	// Planned and Done count removals.
	Planned int `json:"planned"`
	Done    int `json:"done"`
	// Outcomes of those that are done.
	Outcomes []RemovalOutcome `json:"outcomes"`
	// LogRuns and LogEvents count what was removed of what builds printed.
	LogRuns   int   `json:"logRuns"`
	LogEvents int64 `json:"logEvents"`
	// Error says why it goes no further for the moment; it is tried again.
	Error string `json:"error,omitempty"`
}

// Retained is what the record knows of a project that its rules look at, as of
// one moment.
type Retained struct {
	Project Project
	// Now is the database's clock.
	Now    time.Time
	Images []RetainedImage
	// Others in the same repositories are not the project's to remove: images of
	// other projects, what runs have built and not yet recorded.
	Others []Image
	// Caches says when each platform was last built into the cache's repository,
	// by whichever project.
	Caches map[Platform]time.Time
	// Building is a run that may be writing to the cache's repository; empty: none.
	Building RunID
	// Logs are runs of the project that ended and whose output is there, oldest
	// first, without those of which an image of an open job is.
	Logs []LogRemoval
}

// RetainedImage is an image of the project.
type RetainedImage struct {
	// Image where it was built.
	Image      Image
	RecordedAt time.Time // newest record
	// Gone: it was removed from where it was built.
	Gone bool
	// Busy is a run or a promotion that works with it; empty: none.
	Busy JobID
	// Places it was promoted to.
	Places []RetainedPlace
	// Tags of Dray's on it, in any repository.
	Tags []RetainedTag
}

// RetainedPlace is an image in an environment.
type RetainedPlace struct {
	Environment string
	Image       Image
	Since       time.Time // when it was last promoted there
	Gone        bool
	// Depth is how many images came after it there, those that were rolled back
	// from left out: 0 is what the environment holds. -1: it was rolled back from.
	Depth int
}

// RetainedTag is a tag of Dray's.
type RetainedTag struct {
	Repository string
	Tag        string
	Since      time.Time
}

// Pruning is a removal that was begun. Its record comes before its effect.
type Pruning struct {
	ID      int64
	Project string
	Run     string // the RetentionRun's id
	By      string
	Removal Removal
}

// RetentionStore keeps what retention needs to know and has done.
type RetentionStore interface {
	Retained(ctx context.Context, project string) (Retained, error)
	// BeginRetention keeps a plan that is to be applied. While one of the project
	// is open, the same plan gives that one, and another is ErrConflict.
	BeginRetention(ctx context.Context, plan RetentionPlan, by string) (RetentionRun, error)
	// OpenRetentions lists those that have not ended, oldest first, with their plans.
	OpenRetentions(context.Context) ([]RetentionRun, []RetentionPlan, error)
	// BeginPruning keeps the intent, before anything is removed. It is ErrConflict
	// if a run or a promotion works with what would go, if an environment holds
	// it, or if the record knows of another tag on it. From here until EndPruning
	// nobody takes up a run or a promotion of it.
	BeginPruning(ctx context.Context, p Pruning) (Pruning, error)
	// EndPruning keeps the outcome: what was removed is not in the record's
	// tags any more, the image is marked, and the log says so. It is idempotent.
	EndPruning(ctx context.Context, p Pruning, outcome RemovalOutcome) error
	// NotePruning keeps the outcome of a removal that was never begun.
	NotePruning(ctx context.Context, run string, outcome RemovalOutcome) error
	// OpenPrunings lists what was begun and not ended.
	OpenPrunings(context.Context) ([]Pruning, error)
	// PruneLogs removes what those runs printed, a bounded part at a time; more
	// says that there is more to remove.
	PruneLogs(ctx context.Context, run string, of []LogRemoval) (more bool, err error)
	// EndRetention ends it, or with a reason notes why it goes no further for now.
	EndRetention(ctx context.Context, run string, problem string) error
	// AutoRetention lists the projects whose plan is to be applied by itself now.
	AutoRetention(context.Context) ([]string, error)
}

// Pruner looks into a registry and removes from it.
type Pruner interface {
	// Survey reads what leads to what in a repository: all of its tags, the
	// manifests that are asked for, and all that these lead to. Of those in
	// attached, it finds what is attached to them as well. A manifest that is not
	// there is not in the answer.
	Survey(ctx context.Context, repository string, manifests, attached []Digest) (*Holdings, error)
	// Prune removes tags and then manifests, in the order given. It first looks
	// whether the tags of the repository are as in h, and if not so changes
	// nothing, with an error that wraps ErrConflict. If the registry does not
	// remove such things, it changes nothing and says why. What is gone already is
	// no error, so that it can be repeated.
	Prune(ctx context.Context, h *Holdings, r Removal) (blocked string, err error)
}

// attachedTo is the manifest that a tag belongs to by its name: registries
// without the referrers API keep the list of a manifest's referrers under such a
// tag, and cosign its signatures.
func attachedTo(tag string) (Digest, bool) {
	hex, ok := strings.CutPrefix(tag, "sha256-")
	if !ok {
		return "", false
	}
	hex, _, _ = strings.Cut(hex, ".")
	d, err := ParseDigest("sha256:" + hex)
	return d, err == nil
}

// CacheTagPrefix begins the tags that build caches are kept under.
const CacheTagPrefix = "cache-"

func since(now, t time.Time) string {
	return fmt.Sprintf("%s ago", Duration(now.Sub(t).Truncate(time.Hour)))
}
