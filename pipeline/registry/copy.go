package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// Copy implements pipeline.Registry. It brings the image's manifests and blobs,
// and whatever is attached to any of its manifests: referrers (by the referrers
// API or the fallback tag, on either side), and cosign's legacy tags.
//
// Blobs go first, then manifests from the leaves up, then what is attached.
// When it returns nil, the destination has confirmed every blob and manifest by
// its digest, the image was read back and hashed, and every referrer is listed;
// or an earlier copy or audit has seen to that within Config.MemoryAge. What is
// there already is not sent again, so that a copy that broke off can be
// repeated. The locks of the destination's subjects are taken here: the caller
// must not hold them.
func (r *Registry) Copy(ctx context.Context, img pipeline.Image, repo string) (pipeline.Copied, error) {
	done, err := r.copy(ctx, img, repo)
	if err != nil {
		return pipeline.Copied{}, fmt.Errorf("copy %s to %s: %w", img, repo, err)
	}
	return done, nil
}

func (r *Registry) copy(ctx context.Context, img pipeline.Image, repo string) (pipeline.Copied, error) {
	var none pipeline.Copied
	if _, err := pipeline.ParseDigest(string(img.Digest)); err != nil {
		return none, pipeline.Permanent(err)
	}
	from, err := r.open(img.Repository, ggcr.PullScope)
	if err != nil {
		return none, err
	}
	to, err := r.open(repo, ggcr.PushScope)
	if err != nil {
		return none, err
	}
	var c *closure
	look := false
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		c, err = r.walk(gctx, from, img.Digest)
		return err
	})
	if r.memory == nil {
		g.Go(func() (err error) {
			look, err = to.holds(gctx, img.Digest)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return none, err
	}
	t := &transfer{r: r, from: from, to: to, c: c, look: look, known: to.known(ctx, c.digests())}
	if look {
		root := c.nodes[c.root]
		t.known = map[pipeline.Digest]pipeline.Content{root.digest: root.content("")} // it was read a moment ago
	}
	err = t.run(ctx)
	if !t.look && errors.Is(err, errNotThere) {
		// What was remembered, or what the registry said, is not so any more.
		r.log.WarnContext(ctx, "the destination lacks what it had: the copy is made again, asking for everything",
			"image", img.String(), "destination", repo, "error", err)
		if err := to.forget(ctx, c.digests()); err != nil {
			return none, err
		}
		t = &transfer{r: r, from: from, to: to, c: c, look: true, done: pipeline.Copied{Sent: t.done.Sent}}
		err = t.run(ctx)
	}
	to.remember(ctx, t.confirmed)
	if err != nil {
		return none, err
	}
	t.done.Image = pipeline.Image{Repository: repo, Digest: img.Digest}
	t.done.Manifests, t.done.Blobs = len(c.nodes)+len(c.legacy), len(c.blobs)
	t.done.Referrers, t.done.Contents = c.referrers(), c.contents()
	return t.done, nil
}

// holds reports whether the manifest can be read there.
func (p *repository) holds(ctx context.Context, d pipeline.Digest) (bool, error) {
	_, err := p.get(ctx, string(d))
	if errors.Is(err, pipeline.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// transfer brings a closure to its destination.
type transfer struct {
	r        *Registry
	from, to *repository
	c        *closure
	// look asks the destination for everything before it writes: something of
	// the image is there. Otherwise what is not known is written; that is the
	// same effect, and one request where asking first would be two.
	look  bool
	known map[pipeline.Digest]pipeline.Content // verified there not long ago

	mu        sync.Mutex
	done      pipeline.Copied
	confirmed []pipeline.Content // by this transfer
	written   map[pipeline.Digest]bool
	turns     map[pipeline.Digest]*sync.Mutex // by subject
}

func (t *transfer) run(ctx context.Context) error {
	t.written = map[pipeline.Digest]bool{}
	if err := t.blobs(ctx); err != nil {
		return err
	}
	if err := t.manifests(ctx); err != nil {
		return err
	}
	if err := t.attachments(ctx); err != nil {
		return err
	}
	root := t.c.root
	if !t.written[root] {
		return nil // it was read, or is known
	}
	return t.to.confirm(ctx, string(root), root)
}

// note adds to what is confirmed.
func (t *transfer) note(c pipeline.Content) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.confirmed {
		if t.confirmed[i].Digest == c.Digest {
			t.confirmed[i] = c
			return
		}
	}
	t.confirmed = append(t.confirmed, c)
}

func (t *transfer) blobs(ctx context.Context) error {
	list := make([]descriptor, 0, len(t.c.blobs))
	for _, d := range t.c.blobs {
		if k, ok := t.known[d.Digest]; ok && k.Size == d.Size {
			t.done.Skipped++
			continue
		}
		list = append(list, d)
	}
	// The largest first: the last transfer to finish is then a short one.
	slices.SortFunc(list, func(a, b descriptor) int {
		switch {
		case a.Size > b.Size, a.Size == b.Size && a.Digest < b.Digest:
			return -1
		}
		return 1
	})
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(t.r.parallel)
	for _, d := range list {
		g.Go(func() error {
			how, err := t.r.copyBlob(ctx, t.from, t.to, d, t.look)
			if err != nil {
				return err
			}
			t.note(pipeline.Content{Digest: d.Digest, Size: d.Size})
			t.mu.Lock()
			defer t.mu.Unlock()
			switch how {
			case skipped:
				t.done.Skipped++
			case mounted:
				t.done.Mounted++
			case sent:
				t.done.Sent += d.Size
			}
			return nil
		})
	}
	return g.Wait()
}

// manifests writes those that the destination is not known to have.
func (t *transfer) manifests(ctx context.Context) error {
	for _, wave := range t.c.waves() {
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(t.r.parallel)
		for _, m := range wave {
			if k, ok := t.known[m.digest]; ok && k.Manifest {
				continue
			}
			g.Go(func() error { return t.manifest(ctx, m) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) manifest(ctx context.Context, m *manifest) error {
	there := false
	if t.look {
		var err error
		if there, err = t.to.holds(ctx, m.digest); err != nil {
			return err
		}
	}
	if !there {
		said, err := t.put(ctx, m)
		if err != nil {
			return err
		}
		if m.subject != "" && said.subject == string(m.subject) {
			t.r.learned.noteAPI(t.to.String(), true)
		}
		if m.digest != t.c.root && said.digest != string(m.digest) {
			if err := t.to.confirm(ctx, string(m.digest), m.digest); err != nil {
				return err
			}
		}
		t.mu.Lock()
		t.written[m.digest] = true
		t.mu.Unlock()
	}
	t.note(m.content(""))
	return nil
}

// put writes a manifest. One with a subject is written under the subject's lock:
// there are registries with the referrers API that lose an entry when two come
// at once, also one that was listed a moment ago.
func (t *transfer) put(ctx context.Context, m *manifest) (accepted, error) {
	if m.subject != "" {
		// One of this transfer at a time asks for the lock: it may cost a database
		// connection.
		turn := t.turn(m.subject)
		turn.Lock()
		defer turn.Unlock()
		unlock, err := t.to.lock(ctx, m.subject)
		if err != nil {
			return accepted{}, err
		}
		defer unlock()
	}
	return t.to.put(ctx, string(m.digest), m.mediaType, m.body)
}

// turn is what the writers of one subject's referrers take turns by.
func (t *transfer) turn(subject pipeline.Digest) *sync.Mutex {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.turns == nil {
		t.turns = map[pipeline.Digest]*sync.Mutex{}
	}
	if t.turns[subject] == nil {
		t.turns[subject] = &sync.Mutex{}
	}
	return t.turns[subject]
}

// content is what a record says of a manifest; subject is empty unless it is
// known as attached to it.
func (m *manifest) content(subject pipeline.Digest) pipeline.Content {
	return pipeline.Content{Digest: m.digest, Size: int64(len(m.body)), Manifest: true, Subject: subject}
}

// attachments makes what is attached known at the destination.
func (t *transfer) attachments(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(t.r.parallel, 4)) // a lock may cost a database connection
	for subject, refs := range t.c.attached {
		var unlisted []*manifest
		for _, m := range refs {
			if k := t.known[m.digest]; !k.Manifest || k.Subject != subject {
				unlisted = append(unlisted, m)
			}
		}
		if len(unlisted) == 0 {
			continue
		}
		g.Go(func() error {
			if err := t.to.attach(ctx, subject, unlisted); err != nil {
				return err
			}
			for _, m := range unlisted {
				t.note(m.content(subject))
			}
			return nil
		})
	}
	for _, l := range t.c.legacy {
		// A manifest with a subject of its own would be remembered as its referrer.
		if k := t.known[l.m.digest]; k.Manifest && k.Subject == l.subject && l.m.subject == "" {
			l.now = l.m
			continue
		}
		g.Go(func() error {
			if err := t.r.bring(ctx, t.from, t.to, l); err != nil {
				return err
			}
			if l.now.subject == "" {
				t.note(l.now.content(l.subject))
			}
			return nil
		})
	}
	return g.Wait()
}

// contents lists the closure as it is at the destination, in the order of the
// digests.
func (c *closure) contents() []pipeline.Content {
	all := map[pipeline.Digest]pipeline.Content{}
	for _, d := range c.blobs {
		all[d.Digest] = pipeline.Content{Digest: d.Digest, Size: d.Size}
	}
	for _, m := range c.nodes {
		all[m.digest] = m.content("")
	}
	for subject, refs := range c.attached {
		for _, m := range refs {
			all[m.digest] = m.content(subject)
		}
	}
	for _, l := range c.legacy {
		all[l.now.digest] = l.now.content(l.subject)
		if d := l.now.config; d != nil {
			all[d.Digest] = pipeline.Content{Digest: d.Digest, Size: d.Size}
		}
	}
	list := make([]pipeline.Content, 0, len(all))
	for _, content := range all {
		list = append(list, content)
	}
	slices.SortFunc(list, func(a, b pipeline.Content) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return list
}
