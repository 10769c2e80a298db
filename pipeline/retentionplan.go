package pipeline

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	// maxRemovals bounds a plan, so that people can read it and a registry can
	// bear it.
	maxRemovals = 200
	// maxLogRemovals bounds the runs whose output goes by one plan.
	maxLogRemovals = 1000
)

// planning is one plan being made.
type planning struct {
	st   Retained
	now  time.Time // a full hour
	plan RetentionPlan
	// known is what the record knows in each repository, with the words in which
	// it keeps a manifest from going with another.
	known map[string]map[Digest]string
	// others are not the project's to remove.
	others map[Image]bool
	// wishes are what the rules would let go, by repository.
	wishes map[string][]wish
	// placeKept says why an image stays in an environment: then it stays where it
	// was built as well, because that is where repairs come from.
	placeKept map[Digest]string
}

// wish is what the rules would let go, if nothing else holds it.
type wish struct {
	Removal
	age time.Time
	// may are the tags that may go with it.
	may []string
}

// plan looks at the record and at the registries, and changes nothing.
func (r *Retainer) plan(ctx context.Context, project string) (*planning, error) {
	st, err := r.Store.Retained(ctx, project)
	if err != nil {
		return nil, err
	}
	p := newPlanning(st)
	rules := st.Project.Retention
	if rules == nil {
		p.seal()
		return p, nil
	}
	if rules.Images != nil {
		for _, img := range st.Images {
			p.places(img, rules)
		}
	}
	// Environments first: what stays there stays where it was built.
	build := st.Project.Repository
	for _, repository := range slices.Sorted(maps.Keys(p.wishes)) {
		if repository == build {
			return nil, fmt.Errorf("retention of %s: %s is where images are built to and an environment: %w", project, build, ErrInvalid)
		}
		h, err := r.survey(ctx, p, repository)
		if err != nil {
			return nil, err
		}
		p.settle(h)
	}
	if rules.Images != nil {
		p.builds(rules)
	}
	caches := cmp.Or(st.Project.CacheRepository, build)
	if len(p.wishes[build]) > 0 || (rules.Tags != nil && rules.Tags.SHA != nil) || (rules.Caches != nil && caches == build) {
		h, err := r.survey(ctx, p, build)
		if err != nil {
			return nil, err
		}
		p.settle(h)
		p.tags(h, rules)
		if caches == build {
			p.caches(h, rules)
		}
	}
	if rules.Caches != nil && caches != build {
		h, err := r.survey(ctx, p, caches)
		if err != nil {
			return nil, err
		}
		p.caches(h, rules)
	}
	p.logs(rules)
	p.seal()
	return p, nil
}

func newPlanning(st Retained) *planning {
	p := &planning{st: st, now: st.Now.UTC().Truncate(time.Hour), known: map[string]map[Digest]string{}, others: map[Image]bool{},
		wishes: map[string][]wish{}, placeKept: map[Digest]string{}}
	p.plan = RetentionPlan{Project: st.Project.Name, Retention: st.Project.Retention, At: p.now,
		Remove: []Removal{}, Keep: []Kept{}, Logs: []LogRemoval{}}
	note := func(img Image, why string) {
		if p.known[img.Repository] == nil {
			p.known[img.Repository] = map[Digest]string{}
		}
		p.known[img.Repository][img.Digest] = why
	}
	for _, img := range st.Images {
		if !img.Gone {
			note(img.Image, fmt.Sprintf("%s is an image of %s", img.Image.Digest, st.Project.Name))
		}
		for _, at := range img.Places {
			if !at.Gone {
				note(at.Image, fmt.Sprintf("%s was promoted to %s", at.Image.Digest, at.Environment))
			}
		}
	}
	for _, other := range st.Others {
		note(other, fmt.Sprintf("%s is used by another project, or by a run that is under way", other.Digest))
		p.others[other] = true
	}
	return p
}

// survey looks at a repository for what the rules would let go.
func (r *Retainer) survey(ctx context.Context, p *planning, repository string) (*Holdings, error) {
	var attached []Digest
	for _, w := range p.wishes[repository] {
		attached = append(attached, w.Image.Digest)
	}
	return r.look(ctx, p, repository, attached)
}

func (r *Retainer) look(ctx context.Context, p *planning, repository string, attached []Digest) (*Holdings, error) {
	manifests := slices.Sorted(maps.Keys(p.known[repository]))
	h, err := r.Pruner.Survey(ctx, repository, manifests, attached)
	if err != nil {
		return nil, fmt.Errorf("look at what %s holds: %w", repository, err)
	}
	return h, nil
}

// expired reports whether something of that moment is older than a rule wants.
func (p *planning) expired(t time.Time, keep Duration) bool {
	return p.now.Sub(t) > max(keep.Std(), MinRetention)
}

func (p *planning) keep(environment string, img Image, tag, format string, args ...any) {
	p.plan.Keep = append(p.plan.Keep, Kept{Environment: environment, Image: img, Tag: tag, Reason: fmt.Sprintf(format, args...)})
}

// places looks at an image in the environments that it was promoted to.
func (p *planning) places(img RetainedImage, rules *Retention) {
	for _, at := range img.Places {
		if at.Gone {
			continue
		}
		env, ok := p.st.Project.Environment(at.Environment)
		reason := ""
		switch {
		case img.Busy != "":
			reason = fmt.Sprintf("%s works with it", img.Busy)
		case !ok || env.Repository != at.Image.Repository:
			reason = fmt.Sprintf("it was promoted to %s, of which the settings do not speak any more", at.Environment)
		case at.Depth == 0:
			reason = fmt.Sprintf("it is what %s holds", at.Environment)
		case at.Depth > 0 && at.Depth <= RollbackDepth:
			reason = fmt.Sprintf("%s may go back to it", at.Environment)
		case rules.Promoted == nil:
			reason = fmt.Sprintf("it was promoted to %s", at.Environment)
		case !p.expired(at.Since, rules.Promoted.For):
			reason = fmt.Sprintf("it was promoted to %s %s", at.Environment, since(p.now, at.Since))
		}
		if reason != "" {
			p.placeKept[img.Image.Digest] = reason
			p.keep(at.Environment, at.Image, "", "%s", reason)
			continue
		}
		p.wishes[at.Image.Repository] = append(p.wishes[at.Image.Repository], wish{
			Removal: Removal{Kind: RemoveImage, Environment: at.Environment, Image: at.Image,
				Reason: fmt.Sprintf("it was last promoted to %s %s", at.Environment, since(p.now, at.Since))},
			age: at.Since, may: p.mayGo(img, at.Image.Repository, rules),
		})
	}
}

// builds looks at the images where they were built, newest first.
func (p *planning) builds(rules *Retention) {
	images := slices.DeleteFunc(slices.Clone(p.st.Images), func(i RetainedImage) bool { return i.Gone })
	slices.SortFunc(images, func(a, b RetainedImage) int {
		return cmp.Or(b.RecordedAt.Compare(a.RecordedAt), cmp.Compare(a.Image.Digest, b.Image.Digest))
	})
	for n, img := range images {
		reason := p.placeKept[img.Image.Digest]
		switch rule := rules.Images; {
		case reason != "":
		case img.Busy != "":
			reason = fmt.Sprintf("%s works with it", img.Busy)
		case n < rule.Keep:
			reason = fmt.Sprintf("it is among the newest %d", rule.Keep)
		case !p.expired(img.RecordedAt, rule.For):
			reason = fmt.Sprintf("it was recorded %s", since(p.now, img.RecordedAt))
		case img.Image.Repository != p.st.Project.Repository:
			reason = "the project builds to another repository now"
		}
		if reason != "" {
			p.keep("", img.Image, "", "%s", reason)
			continue
		}
		p.wishes[img.Image.Repository] = append(p.wishes[img.Image.Repository], wish{
			Removal: Removal{Kind: RemoveImage, Image: img.Image,
				Reason: fmt.Sprintf("recorded %s, and not among the newest %d", since(p.now, img.RecordedAt), rules.Images.Keep)},
			age: img.RecordedAt, may: p.mayGo(img, img.Image.Repository, rules),
		})
	}
}

// mayGo lists the tags in the repository that do not keep the image.
func (p *planning) mayGo(img RetainedImage, repository string, rules *Retention) (tags []string) {
	for _, t := range img.Tags {
		if t.Repository != repository || !strings.HasPrefix(t.Tag, shaTagPrefix) || !p.expired(t.Since, 0) {
			continue
		}
		byRule := rules.Tags != nil && rules.Tags.SHA != nil && p.expired(t.Since, rules.Tags.SHA.For)
		if byRule || rules.Images.KeepTagged != KeepAll {
			tags = append(tags, t.Tag)
		}
	}
	return tags
}

// settle finds out which of a repository's wishes can be had, the oldest first.
// What one of them frees may let another go.
func (p *planning) settle(h *Holdings) {
	open := p.wishes[h.Repository]
	slices.SortFunc(open, func(a, b wish) int {
		return cmp.Or(a.age.Compare(b.age), cmp.Compare(a.Image.Digest, b.Image.Digest))
	})
	why := map[Digest]string{}
	for progress := true; progress; {
		progress = false
		var left []wish
		for _, w := range open {
			switch reason, ok := p.take(h, w); {
			case ok:
				progress = true
			default:
				why[w.Image.Digest] = reason
				left = append(left, w)
			}
		}
		open = left
	}
	for _, w := range open {
		p.keep(w.Environment, w.Image, "", "%s", why[w.Image.Digest])
		if w.Environment != "" {
			p.placeKept[w.Image.Digest] = fmt.Sprintf("it stays in %s: %s", w.Environment, why[w.Image.Digest])
		}
	}
}

// take plans one removal, as if all others stayed.
func (p *planning) take(h *Holdings, w wish) (why string, ok bool) {
	if len(p.plan.Remove) >= maxRemovals {
		p.plan.More = true
		return "this plan is full; another one follows", false
	}
	pinned, why := p.pinned(w.Image)
	if why != "" {
		return why, false
	}
	removal := w.Removal
	tags := slices.DeleteFunc(h.plainTags(w.Image.Digest), func(t string) bool { return !slices.Contains(w.may, t) })
	manifests, bytes, why, ok := h.remove(w.Image.Digest, tags, pinned)
	if !ok {
		return why, false
	}
	removal.Tags, removal.Manifests, removal.Bytes = notNil(tags), manifests, bytes
	p.plan.Remove = append(p.plan.Remove, removal)
	h.take(tags, manifests)
	delete(p.known[h.Repository], w.Image.Digest)
	return "", true
}

// pinned is what stays in the image's repository whatever leads to it; or why the
// image itself is not the project's to remove.
func (p *planning) pinned(img Image) (pinned map[Digest]string, why string) {
	if p.others[img] {
		return nil, p.known[img.Repository][img.Digest]
	}
	pinned = maps.Clone(p.known[img.Repository])
	delete(pinned, img.Digest)
	return pinned, ""
}

// tags looks at the tags that name a commit, of images that stay.
func (p *planning) tags(h *Holdings, rules *Retention) {
	if rules.Tags == nil || rules.Tags.SHA == nil {
		return
	}
	for _, img := range p.st.Images {
		for _, t := range img.Tags {
			if t.Repository != h.Repository || !strings.HasPrefix(t.Tag, shaTagPrefix) || h.Tags[t.Tag] != img.Image.Digest {
				continue
			}
			switch {
			case img.Busy != "":
				p.keep("", img.Image, t.Tag, "%s works with its image", img.Busy)
			case !p.expired(t.Since, rules.Tags.SHA.For):
				p.keep("", img.Image, t.Tag, "it is there since %s", since(p.now, t.Since))
			case len(p.plan.Remove) >= maxRemovals:
				p.plan.More = true
			default:
				h.take([]string{t.Tag}, nil)
				p.plan.Remove = append(p.plan.Remove, Removal{Kind: RemoveTag, Image: img.Image, Tags: []string{t.Tag}, Manifests: []Digest{},
					Reason: fmt.Sprintf("it is there since %s, and its image stays", since(p.now, t.Since))})
			}
		}
	}
}

// caches looks at the build caches.
func (p *planning) caches(h *Holdings, rules *Retention) {
	if rules.Caches == nil {
		return
	}
	unused := map[Digest][]string{}
	ages := map[Digest]time.Time{}
	for _, tag := range slices.Sorted(maps.Keys(h.Tags)) {
		if !strings.HasPrefix(tag, CacheTagPrefix) {
			continue
		}
		img := Image{Repository: h.Repository, Digest: h.Tags[tag]}
		last, known := p.lastBuilt(tag)
		switch {
		case p.st.Building != "":
			p.keep("", img, tag, "%s may be using it", p.st.Building)
		case !known:
			p.keep("", img, tag, "it is not known when it was used last")
		case !p.expired(last, rules.Caches.For):
			p.keep("", img, tag, "it was used %s", since(p.now, last))
		default:
			unused[img.Digest], ages[img.Digest] = append(unused[img.Digest], tag), last
		}
	}
	for _, d := range slices.Sorted(maps.Keys(unused)) {
		img := Image{Repository: h.Repository, Digest: d}
		w := wish{Removal: Removal{Kind: RemoveCache, Image: img, Reason: fmt.Sprintf("nothing was built with it since %s", since(p.now, ages[d]))},
			may: unused[d]}
		if why, ok := p.take(h, w); !ok {
			p.keep("", img, unused[d][0], "%s", why)
		}
	}
}

// lastBuilt is when a build last used the cache under that tag.
func (p *planning) lastBuilt(tag string) (last time.Time, known bool) {
	for platform, at := range p.st.Caches {
		if strings.HasSuffix(tag, "-"+strings.ReplaceAll(string(platform), "/", "-")) && at.After(last) {
			last, known = at, true
		}
	}
	return last, known
}

func (p *planning) logs(rules *Retention) {
	if rules.Logs == nil {
		return
	}
	for _, l := range p.st.Logs {
		if !p.expired(l.EndedAt, rules.Logs.For) {
			continue
		}
		if len(p.plan.Logs) == maxLogRemovals {
			p.plan.More = true
			return
		}
		p.plan.Logs = append(p.plan.Logs, l)
	}
}

// seal computes what the plan is bound by: the rules, and what goes.
func (p *planning) seal() {
	type what struct {
		Kind      string   `json:"kind"`
		Image     Image    `json:"image"`
		Tags      []string `json:"tags"`
		Manifests []Digest `json:"manifests"`
	}
	doc := struct {
		Project   string     `json:"project"`
		Retention *Retention `json:"retention"`
		Remove    []what     `json:"remove"`
		Logs      []RunID    `json:"logs"`
	}{Project: p.plan.Project, Retention: p.plan.Retention}
	for _, r := range p.plan.Remove {
		p.plan.Bytes += r.Bytes
		doc.Remove = append(doc.Remove, what{r.Kind, r.Image, r.Tags, r.Manifests})
	}
	for _, l := range p.plan.Logs {
		doc.Logs = append(doc.Logs, l.Run)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err) // texts, numbers and durations always marshal
	}
	sum := sha256.Sum256(b)
	p.plan.Digest = Digest("sha256:" + hex.EncodeToString(sum[:]))
}
