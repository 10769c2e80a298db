package pipeline

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Held is one manifest that a repository holds, and what it leads to.
type Held struct {
	Size     int64     // of the manifest itself, in bytes
	Children []Digest  // manifests that an index lists
	Subject  Digest    // what it is attached to, by its own word; may be empty
	Blobs    []Content // config and layers
	Index    bool
}

// Holdings is what a repository holds, as far as somebody looked. Everything in
// it is kept unless it is taken out: what others tagged or pushed counts as much
// as what Dray did.
type Holdings struct {
	Repository string
	// SeenAt is when it was looked at.
	SeenAt time.Time
	// Tags are all of the repository's.
	Tags map[string]Digest
	// Manifests that the tags and the digests that were asked for lead to.
	Manifests map[Digest]Held

	tagged   map[Digest][]string // tags of each manifest
	parents  map[Digest][]Digest // indexes that list it
	attached map[Digest][]Digest // manifests whose subject it is
	lists    map[Digest][]Digest // manifests that a tag like "sha256-…" attaches to it
	blobs    map[Digest]int      // how many manifests name the blob
}

// index makes what can be looked up backwards. It is made once, and kept up to
// date by take.
func (h *Holdings) index() {
	if h.tagged != nil {
		return
	}
	h.tagged, h.parents, h.attached, h.lists = map[Digest][]string{}, map[Digest][]Digest{}, map[Digest][]Digest{}, map[Digest][]Digest{}
	h.blobs = map[Digest]int{}
	for _, tag := range slices.Sorted(maps.Keys(h.Tags)) {
		d := h.Tags[tag]
		h.tagged[d] = append(h.tagged[d], tag)
		if subject, ok := attachedTo(tag); ok {
			h.lists[subject] = append(h.lists[subject], d)
		}
	}
	for d, m := range h.Manifests {
		for _, c := range m.Children {
			h.parents[c] = append(h.parents[c], d)
		}
		if m.Subject != "" {
			h.attached[m.Subject] = append(h.attached[m.Subject], d)
		}
		for _, b := range distinct(m.Blobs) {
			h.blobs[b.Digest]++
		}
	}
}

func distinct(blobs []Content) []Content {
	seen := map[Digest]bool{}
	return slices.DeleteFunc(slices.Clone(blobs), func(b Content) bool {
		twice := seen[b.Digest]
		seen[b.Digest] = true
		return twice
	})
}

// leads lists what would lose its meaning with a manifest: its children, what is
// attached to it, and the lists of that.
func (h *Holdings) leads(d Digest) []Digest {
	return slices.Concat(h.Manifests[d].Children, h.attached[d], h.lists[d])
}

// closure of the roots: everything they lead to that is there.
func (h *Holdings) closure(roots []Digest) map[Digest]bool {
	h.index()
	in := map[Digest]bool{}
	for next := slices.Clone(roots); len(next) > 0; {
		d := next[len(next)-1]
		next = next[:len(next)-1]
		if _, there := h.Manifests[d]; !there || in[d] {
			continue
		}
		in[d] = true
		next = append(next, h.leads(d)...)
	}
	return in
}

// removable says which of the manifests can go, if those tags go with them, so
// that nothing else loses anything; and why the others stay. pinned are
// manifests that stay whatever leads to them.
//
// A manifest stays if a tag names it that does not go, if an index lists it that
// stays, if what it is attached to stays or is not known, or if something stays
// that is attached to it. And with a manifest stays all that it leads to.
func (h *Holdings) removable(going map[Digest]bool, tags []string, pinned map[Digest]string) (stays map[Digest]string) {
	h.index()
	stays = map[Digest]string{}
	leaves := func(d Digest) bool { _, s := stays[d]; return going[d] && !s }
	why := func(d Digest) string {
		if reason, ok := pinned[d]; ok {
			return reason
		}
		for _, tag := range h.tagged[d] {
			if slices.Contains(tags, tag) {
				continue
			}
			subject, attached := attachedTo(tag)
			if attached && leaves(subject) {
				continue // it goes with that
			}
			if attached {
				return fmt.Sprintf("it belongs to %s by the tag %s", subject, tag)
			}
			return fmt.Sprintf("the tag %s names it", tag)
		}
		for _, index := range h.parents[d] {
			if !leaves(index) {
				return fmt.Sprintf("%s lists it", index)
			}
		}
		if subject := h.Manifests[d].Subject; subject != "" && !leaves(subject) {
			return fmt.Sprintf("it is attached to %s", subject)
		}
		for _, other := range slices.Concat(h.attached[d], h.lists[d]) {
			if !leaves(other) {
				return fmt.Sprintf("%s is attached to it", other)
			}
		}
		return ""
	}
	order := slices.Sorted(maps.Keys(going))
	for changed := true; changed; {
		changed = false
		for _, d := range order {
			if !leaves(d) {
				continue
			}
			if reason := why(d); reason != "" {
				stays[d], changed = reason, true
				for _, lead := range h.leads(d) {
					if leaves(lead) {
						stays[lead] = fmt.Sprintf("%s stays and leads to it", d)
					}
				}
			}
		}
	}
	return stays
}

// remove plans the removal of an image or a cache: what goes with it, in the
// order in which it should. ok is false, with a reason, if it must stay.
func (h *Holdings) remove(root Digest, tags []string, pinned map[Digest]string) (manifests []Digest, bytes int64, why string, ok bool) {
	going := h.closure([]Digest{root})
	if !going[root] {
		return nil, 0, "it is not in the registry", false
	}
	stays := h.removable(going, tags, pinned)
	if why, keep := stays[root]; keep {
		return nil, 0, why, false
	}
	for d := range stays {
		delete(going, d)
	}
	manifests = h.order(root, going)
	return manifests, h.weight(manifests), "", true
}

// order puts what is attached first, from the outermost inwards, then the image,
// then what it lists: whatever is interrupted leaves nothing that looks whole
// and is not, because the tags went before.
func (h *Holdings) order(root Digest, going map[Digest]bool) []Digest {
	below := map[Digest]bool{root: true}
	for next := []Digest{root}; len(next) > 0; next = next[1:] {
		for _, c := range h.Manifests[next[0]].Children {
			if going[c] && !below[c] {
				below[c] = true
				next = append(next, c)
			}
		}
	}
	depth := map[Digest]int{} // of what is attached: how far from the image
	var outwards func(d Digest, n int)
	outwards = func(d Digest, n int) {
		for _, r := range slices.Concat(h.attached[d], h.lists[d]) {
			if going[r] && !below[r] && depth[r] <= n {
				depth[r] = n + 1
				for _, c := range append([]Digest{r}, h.Manifests[r].Children...) {
					outwards(c, n+1)
				}
			}
		}
	}
	for _, d := range slices.Sorted(maps.Keys(below)) {
		outwards(d, 0)
	}
	rank := func(d Digest) int {
		switch {
		case d == root:
			return 1
		case below[d]:
			return 2
		}
		return -depth[d]
	}
	list := slices.Sorted(maps.Keys(going))
	slices.SortStableFunc(list, func(a, b Digest) int { return rank(a) - rank(b) })
	return list
}

// weight is how many bytes only these manifests need.
func (h *Holdings) weight(manifests []Digest) (bytes int64) {
	uses := map[Digest]int{}
	for _, d := range manifests {
		m := h.Manifests[d]
		bytes += m.Size
		for _, b := range distinct(m.Blobs) {
			if uses[b.Digest]++; uses[b.Digest] == h.blobs[b.Digest] {
				bytes += b.Size
			}
		}
	}
	return bytes
}

// take is what is left when tags and manifests are gone.
func (h *Holdings) take(tags []string, manifests []Digest) {
	h.index()
	without := func(m map[Digest][]Digest, key, d Digest) {
		m[key] = slices.DeleteFunc(m[key], func(x Digest) bool { return x == d })
	}
	untag := func(tag string) {
		d, ok := h.Tags[tag]
		if !ok {
			return
		}
		delete(h.Tags, tag)
		h.tagged[d] = slices.DeleteFunc(h.tagged[d], func(t string) bool { return t == tag })
		if subject, ok := attachedTo(tag); ok {
			without(h.lists, subject, d)
		}
	}
	for _, tag := range tags {
		untag(tag)
	}
	for _, d := range manifests {
		m, ok := h.Manifests[d]
		if !ok {
			continue
		}
		for _, tag := range slices.Clone(h.tagged[d]) {
			untag(tag)
		}
		for _, c := range m.Children {
			without(h.parents, c, d)
		}
		if m.Subject != "" {
			without(h.attached, m.Subject, d)
		}
		for _, b := range distinct(m.Blobs) {
			h.blobs[b.Digest]--
		}
		delete(h.Manifests, d)
	}
}

// TagsOf lists the tags that name a manifest, sorted.
func (h *Holdings) TagsOf(d Digest) []string {
	h.index()
	return slices.Clone(h.tagged[d])
}

// plainTags are those of a manifest that belong to no other one by their name.
func (h *Holdings) plainTags(d Digest) []string {
	return slices.DeleteFunc(h.TagsOf(d), func(tag string) bool { return strings.HasPrefix(tag, "sha256-") })
}
