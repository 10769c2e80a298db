package registry

// Limits bound what Dray accepts from a registry. What exceeds one is refused
// for good: trying again does not make it smaller. Zero fields take their
// defaults.
type Limits struct {
	// ManifestBytes is the largest manifest, index or list of referrers; 4 MiB,
	// which is what registries are asked to accept at least.
	ManifestBytes int64
	// ClosureBytes is the sum of all manifests of one copy, which are held in
	// memory; 24 MiB.
	ClosureBytes int64
	// IndexDepth is how many indexes may be nested; 2.
	IndexDepth int
	// Children is how many manifests one index may list; 256.
	Children int
	// Layers is how many layers one manifest may list; 1024.
	Layers int
	// Referrers is how many manifests may be attached to an image, its
	// platforms, and what is attached to those; 1000.
	Referrers int
	// ReferrerDepth is how far attached content may itself have attached
	// content; 4. A signature of an attestation of an image is at 2.
	ReferrerDepth int
	// TagPages is how many pages of tags are read to find legacy tags before
	// each is asked for by name; 10 pages of up to 1000.
	TagPages int
}

func (l Limits) withDefaults() Limits {
	set := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	if l.ManifestBytes == 0 {
		l.ManifestBytes = 4 << 20
	}
	if l.ClosureBytes == 0 {
		l.ClosureBytes = 24 << 20
	}
	set(&l.IndexDepth, 2)
	set(&l.Children, 256)
	set(&l.Layers, 1024)
	set(&l.Referrers, 1000)
	set(&l.ReferrerDepth, 4)
	set(&l.TagPages, 10)
	return l
}
