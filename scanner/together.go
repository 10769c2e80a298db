//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aquasecurity/trivy/pkg/detector/ospkg/rapidfort"
	"github.com/aquasecurity/trivy/pkg/detector/ospkg/rootio"
	"github.com/aquasecurity/trivy/pkg/detector/ospkg/seal"
	ftypes "github.com/aquasecurity/trivy/pkg/fanal/types"
	"golang.org/x/sync/errgroup"

	"github.com/dray-project/dray/pipeline"
)

// Images share most of their packages, and for most distributions Trivy matches
// each package by itself. So the packages of many images are matched together,
// each once, by the same code as those of one image, and every image gets the
// findings of its own. Where a distribution's matching looks at more than the
// package, or somebody rebuilt packages of the image (which changes who is asked
// about all of them), an image is matched alone.

const (
	// maxRemembered is how many packages' findings are kept during a pass.
	maxRemembered = 300_000
	// rememberFor is how long they are kept after the last use.
	rememberFor = time.Minute
)

// apart are the distributions whose packages are matched one by one.
func apart(family ftypes.OSType) bool {
	switch family {
	case ftypes.Debian, ftypes.Ubuntu, ftypes.Alpine, ftypes.Alma, ftypes.Rocky, ftypes.Oracle, ftypes.Wolfi, ftypes.Chainguard:
		return true
	}
	return false
}

// packageKey is a package in its surroundings.
type packageKey [16]byte

// matchedPackage is what is known of it.
type matchedPackage struct {
	findings []pipeline.Finding
	// rebuilt: the package makes its image one that is matched alone.
	rebuilt bool
}

// remembered are packages that were matched with one database.
type remembered struct {
	mu       sync.Mutex
	database pipeline.Digest
	packages map[packageKey]matchedPackage
	forget   *time.Timer
}

// begin forgets what is known of another database, and too much.
func (r *remembered) begin(database pipeline.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forget != nil {
		r.forget.Stop()
	}
	if r.packages == nil || r.database != database || len(r.packages) > maxRemembered {
		r.database, r.packages = database, map[packageKey]matchedPackage{}
	}
}

func (r *remembered) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.forget != nil {
		r.forget.Stop()
	}
	var mine *time.Timer
	mine = time.AfterFunc(rememberFor, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.forget == mine {
			r.packages = nil
		}
	})
	r.forget = mine
}

// get returns what is known of packages, up to the first that is not.
func (r *remembered) get(keys []packageKey) (all []matchedPackage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all = make([]matchedPackage, 0, len(keys))
	for _, k := range keys {
		m, ok := r.packages[k]
		if !ok {
			return all
		}
		all = append(all, m)
	}
	return all
}

// without returns the packages of which nothing is known.
func (r *remembered) without(all []unmatched) (out []unmatched) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range all {
		if _, ok := r.packages[u.key]; !ok {
			out = append(out, u)
		}
	}
	return out
}

func (r *remembered) put(all map[packageKey]matchedPackage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.packages == nil {
		return // nobody wants it any more
	}
	for k, m := range all {
		r.packages[k] = m
	}
}

// matchable is an image that is to be matched.
type matchable struct {
	doc analysisDocument
	// keys of all its packages; nil when it is matched alone.
	keys  []packageKey
	alone bool
}

// place is what packages are matched within: a distribution, or what a language's
// packages were found in.
type place struct {
	os   *analysisDocument // nil for a language
	kind ftypes.LangType
	file string
}

// sorted out by where they belong.
type unmatched struct {
	place place
	line  packageLine
	key   packageKey
}

// look computes the keys of an image's packages, and returns what it has.
func (m *matchable) look() (all []unmatched, err error) {
	if len(m.doc.Packages) > 0 {
		if !apart(m.doc.OS.Family) || m.doc.OS.Supplier != "" {
			m.alone = true
			return nil, nil
		}
		where, err := json.Marshal([]any{"os", m.doc.OS, m.doc.Repository})
		if err != nil {
			return nil, err
		}
		all = m.add(all, where, place{os: &m.doc}, m.doc.Packages)
	}
	for _, a := range m.doc.Applications {
		where, err := json.Marshal([]any{"app", a.Type, a.FilePath})
		if err != nil {
			return nil, err
		}
		all = m.add(all, where, place{kind: a.Type, file: a.FilePath}, a.Packages)
	}
	return all, nil
}

func (m *matchable) add(all []unmatched, where []byte, at place, packages []packageLine) []unmatched {
	buf := make([]byte, 0, 512)
	for _, line := range packages {
		// Neither has a line's end in it.
		buf = append(append(append(buf[:0], where...), '\n'), line...)
		sum := sha256.Sum256(buf)
		u := unmatched{at, line, packageKey(sum[:16])}
		m.keys, all = append(m.keys, u.key), append(all, u)
	}
	return all
}

// together matches many images. The caller holds the database.
func (s *Scanner) together(ctx context.Context, analyses []pipeline.Analysis, out []pipeline.Rematched) error {
	images := make([]matchable, len(analyses))
	missing := make([][]unmatched, len(analyses))
	err := inParallel(ctx, len(analyses), func(i int) error {
		doc, err := readAnalysis(analyses[i])
		if errors.Is(err, errAnalysis) {
			out[i].Unreadable = err.Error()
			return nil
		}
		if err != nil {
			return err
		}
		images[i].doc = doc
		all, err := images[i].look()
		missing[i] = s.known.without(all)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.matchPackages(ctx, missing); err != nil {
		return err
	}
	return inParallel(ctx, len(analyses), func(i int) (err error) {
		if out[i].Unreadable != "" {
			return nil
		}
		m := &images[i]
		if !m.alone {
			out[i].Findings, m.alone = s.gather(m.keys)
		}
		if m.alone {
			var d ftypes.ArtifactDetail
			if d, err = m.doc.detail(); err == nil {
				out[i].Findings, err = s.matchAlone(ctx, d)
			}
			if errors.Is(err, errAnalysis) {
				out[i].Unreadable, err = err.Error(), nil
			}
		}
		m.doc, m.keys = analysisDocument{}, nil
		return err
	})
}

// gather puts the findings of an image's packages together. One that was rebuilt,
// or that was forgotten meanwhile, has the image matched alone.
func (s *Scanner) gather(keys []packageKey) (list []pipeline.Finding, alone bool) {
	list = []pipeline.Finding{}
	all := s.known.get(keys)
	if len(all) < len(keys) {
		return nil, true
	}
	for _, m := range all {
		if m.rebuilt {
			return nil, true
		}
		list = append(list, m.findings...)
	}
	return inOrder(list), false
}

// matchPackages matches each package that nobody knows of, once.
func (s *Scanner) matchPackages(ctx context.Context, missing [][]unmatched) error {
	// Spread, so that all processors have as much to do.
	parts := make([][]unmatched, runtime.GOMAXPROCS(0))
	seen := map[packageKey]bool{}
	for _, list := range missing {
		for _, u := range list {
			if !seen[u.key] {
				n := len(seen) % len(parts)
				seen[u.key], parts[n] = true, append(parts[n], u)
			}
		}
	}
	return inParallel(ctx, len(parts), func(i int) error {
		found, err := s.matchPart(ctx, parts[i])
		if err == nil {
			s.known.put(found)
		}
		return err
	})
}

func (s *Scanner) matchPart(ctx context.Context, part []unmatched) (_ map[packageKey]matchedPackage, err error) {
	found := make(map[packageKey]matchedPackage, len(part))
	details := map[string]*ftypes.ArtifactDetail{}
	at := func(name string) *ftypes.ArtifactDetail {
		if details[name] == nil {
			details[name] = &ftypes.ArtifactDetail{}
		}
		return details[name]
	}
	apps := map[place]int{}
	for i, u := range part {
		p, err := u.line.decode()
		if err != nil {
			found[u.key] = matchedPackage{rebuilt: true} // its image is found to be unreadable alone
			continue
		}
		pkg := p.join()
		// Whatever Trivy finds for the package carries this.
		pkg.Identifier.UID = strconv.Itoa(i)
		if u.place.os == nil {
			languages := at("")
			n, ok := apps[u.place]
			if !ok {
				n = len(languages.Applications)
				apps[u.place] = n
				languages.Applications = append(languages.Applications, ftypes.Application{Type: u.place.kind, FilePath: u.place.file})
			}
			languages.Applications[n].Packages = append(languages.Applications[n].Packages, pkg)
			found[u.key] = matchedPackage{}
			continue
		}
		os := u.place.os.OS
		rebuilt := rebuiltBySomebody(os, pkg)
		found[u.key] = matchedPackage{rebuilt: rebuilt}
		if rebuilt {
			continue
		}
		repository := ftypes.Repository{}
		if r := u.place.os.Repository; r != nil {
			repository = *r
		}
		d := at(strings.Join([]string{string(os.Family), os.Name, fmt.Sprint(os.Extended), string(repository.Family), repository.Release}, "\x00"))
		d.OS, d.Repository = os, u.place.os.Repository
		d.Packages = append(d.Packages, pkg)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recovered(&err, s.cfg.Log)
	for _, d := range details {
		res, err := s.matcher.of(*d).Scan(ctx, "", "", nil, matching())
		if err != nil {
			return nil, err
		}
		for _, result := range res.Results {
			for _, v := range result.Vulnerabilities {
				i, err := strconv.Atoi(v.PkgIdentifier.UID)
				if err != nil || i < 0 || i >= len(part) {
					return nil, fmt.Errorf("trivy found %s in %s, and does not say in which package of many", v.VulnerabilityID, v.PkgName)
				}
				m := found[part[i].key]
				m.findings = append(m.findings, finding(result, v))
				found[part[i].key] = m
			}
		}
	}
	return found, nil
}

// rebuiltBySomebody: Trivy asks the suppliers of such packages instead of the
// distribution as soon as an image has one.
func rebuiltBySomebody(os ftypes.OS, pkg ftypes.Package) bool {
	one := []ftypes.Package{pkg}
	return rapidfort.Supplier(os, one) != nil || rootio.Supplier(os, one) != nil || seal.Supplier(os, one) != nil
}

// inParallel calls do for 0 to n-1 on all processors.
func inParallel(ctx context.Context, n int, do func(int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range n {
		group.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return do(i)
		})
	}
	return group.Wait()
}
