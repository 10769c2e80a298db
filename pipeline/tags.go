package pipeline

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/Masterminds/semver/v3"
)

// ShaTagLength is how many digits of the commit stand in its tag.
const ShaTagLength = 12

// shaTagPrefix begins the tags that name a commit.
const shaTagPrefix = "sha-"

// ShaTag is the tag that says which commit an image was built from.
func ShaTag(commit string) string {
	return shaTagPrefix + commit[:min(len(commit), ShaTagLength)]
}

// VersionOfRef returns the semantic version that a tag ref releases: "1.2.3"
// of "refs/tags/v1.2.3" or "refs/tags/1.2.3". Build metadata is dropped: a tag
// cannot hold a plus sign. ok is false for everything else.
func VersionOfRef(ref string) (version string, ok bool) {
	name, ok := strings.CutPrefix(ref, "refs/tags/")
	if !ok {
		return "", false
	}
	v, err := semver.StrictNewVersion(strings.TrimPrefix(name, "v"))
	if err != nil {
		return "", false
	}
	return releaseName(v), true
}

func releaseName(v *semver.Version) string {
	s := fmt.Sprintf("%d.%d.%d", v.Major(), v.Minor(), v.Patch())
	if v.Prerelease() != "" {
		s += "-" + v.Prerelease()
	}
	return s
}

// wantedTag is a tag that an image should carry.
type wantedTag struct {
	name string
	// version is nil for a tag that is not a release's.
	version *semver.Version
	// floating tags move forward; the others never move.
	floating bool
	// covers reports whether a floating tag could name that release.
	covers func(*semver.Version) bool
}

// wantedTags lists the tags of an image that was built from commit and is
// released under the versions: those that never move first. A pre-release gets
// its full version only, and a major of 0 promises nothing and gets no tag.
func wantedTags(commit string, versions []string, latest bool) ([]wantedTag, error) {
	tags := []wantedTag{{name: ShaTag(commit)}}
	var floating []wantedTag
	seen := map[string]bool{}
	var parsed []*semver.Version
	for _, s := range versions {
		v, err := semver.StrictNewVersion(s)
		if err != nil {
			return nil, Permanent(fmt.Errorf("version %q: %w", s, err))
		}
		parsed = append(parsed, v)
	}
	sort.Slice(parsed, func(i, j int) bool { return parsed[i].GreaterThan(parsed[j]) })
	float := func(name string, v *semver.Version, covers func(*semver.Version) bool) {
		if !seen[name] { // the highest version comes first and speaks for the tag
			seen[name] = true
			floating = append(floating, wantedTag{name: name, version: v, floating: true, covers: covers})
		}
	}
	for _, v := range parsed {
		tags = append(tags, wantedTag{name: releaseName(v), version: v})
		if v.Prerelease() != "" {
			continue
		}
		float(fmt.Sprintf("%d.%d", v.Major(), v.Minor()), v, func(o *semver.Version) bool {
			return o.Major() == v.Major() && o.Minor() == v.Minor()
		})
		if v.Major() > 0 {
			float(fmt.Sprint(v.Major()), v, func(o *semver.Version) bool { return o.Major() == v.Major() })
		}
		if latest {
			float("latest", v, func(*semver.Version) bool { return true })
		}
	}
	return append(tags, floating...), nil
}

// newestCovered returns the highest release among the repository's tags that a
// floating tag could name.
func newestCovered(t wantedTag, existing, withdrawn []string) *semver.Version {
	var newest *semver.Version
	for _, s := range existing {
		v, err := semver.StrictNewVersion(s)
		if err != nil || v.Prerelease() != "" || !t.covers(v) || slices.Contains(withdrawn, s) {
			continue
		}
		if newest == nil || v.GreaterThan(newest) {
			newest = v
		}
	}
	return newest
}

// tagging says which tags an image should carry.
type tagging struct {
	commit   string
	versions []string
	latest   bool
	// back: floating tags go to this image whatever is newer.
	back bool
	// withdrawn are versions that the place was rolled back from.
	withdrawn []string
}

// tag puts the image's tags on it in its repository. It holds the repository's
// lock, so that two releases see each other's full versions; it looks for
// conflicts before it moves anything; and it asks the store before each move
// whether this attempt still counts.
//
// A floating tag stays where it is if the registry holds a higher release that
// it could name: the registry's own tags are the truth, so that releases made
// before Dray came count as well. Only a rollback moves one back, and a version
// that was rolled back from holds none any more.
func (p *Pipeline) tag(ctx context.Context, c Claim, img Image, how tagging) ([]TagMove, error) {
	wanted, err := wantedTags(how.commit, how.versions, how.latest)
	if err != nil {
		return nil, err
	}
	unlock, err := p.Locker.Lock(ctx, "tags:"+img.Repository)
	if err != nil {
		return nil, fmt.Errorf("lock the tags of %s: %w", img.Repository, err)
	}
	defer unlock()

	existing, err := p.Registry.Tags(ctx, img.Repository)
	if err != nil {
		return nil, err
	}
	moves := make([]TagMove, len(wanted))
	for i, t := range wanted {
		holds, ok, err := p.Registry.TagHolds(ctx, img.Repository, t.name)
		if err != nil {
			return nil, err
		}
		moves[i] = TagMove{Repository: img.Repository, Tag: t.name, To: img.Digest}
		if ok {
			moves[i].From = holds
		}
		if ok && holds != img.Digest && !t.floating {
			return nil, Permanent(&TagConflict{Repository: img.Repository, Tag: t.name, Holds: holds, Wanted: img.Digest})
		}
	}
	for i, t := range wanted {
		m := &moves[i]
		if m.From == img.Digest {
			m.Held, m.Note = true, "already there"
			continue
		}
		if t.floating && how.back && m.From != "" {
			m.Note = fmt.Sprintf("rolled back from %s", m.From)
		} else if t.floating {
			if newest := newestCovered(t, existing, how.withdrawn); newest != nil && newest.GreaterThan(t.version) {
				m.Note = fmt.Sprintf("stays: %s is newer than %s", newest, t.version)
				continue
			}
		}
		if err := p.Store.Holds(ctx, c); err != nil {
			return nil, err
		}
		if err := p.Registry.Tag(ctx, img, t.name); err != nil {
			return nil, fmt.Errorf("tag %s:%s: %w", img.Repository, t.name, err)
		}
		m.Moved, m.Held = true, true
	}
	return moves, nil
}
