package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// signedBy: so many of the keys have signed every manifest of the image.
func signedBy(a arguments) (func(facts) result, error) {
	var args struct {
		Keys  []string `json:"keys"`
		Count int      `json:"count"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	if len(args.Keys) == 0 {
		return nil, fmt.Errorf("with.keys is required: the ids of the keys: %w", pipeline.ErrInvalid)
	}
	for i, k := range args.Keys {
		k = strings.TrimPrefix(k, "sha256:")
		if len(k) != 64 || strings.Trim(k, "0123456789abcdef") != "" {
			return nil, fmt.Errorf("with.keys: %.80q: want the sha256 of the public key, 64 lower-case hexadecimal digits: %w", args.Keys[i], pipeline.ErrInvalid)
		}
		args.Keys[i] = k
	}
	slices.Sort(args.Keys)
	keys := slices.Compact(args.Keys)
	count := args.Count
	if count == 0 {
		count = len(keys)
	}
	if count < 0 || count > len(keys) {
		return nil, fmt.Errorf("with.count is %d, and there are %d key(s): %w", args.Count, len(keys), pipeline.ErrInvalid)
	}
	return func(f facts) result {
		var have, missing, all []string
		for _, s := range f.Signatures {
			all = append(all, s.KeyID)
		}
		for _, k := range keys {
			if slices.Contains(all, k) {
				have = append(have, k[:12])
			} else {
				missing = append(missing, k[:12])
			}
		}
		l := looked{"signatures": few(all)}
		if len(have) < count {
			return refuse(l, "have the image and each of its platforms signed by "+some(missing, 5, " or "),
				"signed by %d of the %d key(s) that are asked for; %d are needed; no signature by %s", len(have), len(keys), count, some(missing, 5, ", "))
		}
		return pass(l, "signed by %s", some(have, 5, ", "))
	}, nil
}

// provenance: who built the image, from which source, branch or tag.
func provenance(a arguments) (func(facts) result, error) {
	var args struct {
		Builder  string `json:"builder"`
		Source   string `json:"source"`
		Branches globs  `json:"branches"`
		Tags     globs  `json:"tags"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	if err := args.Branches.check("with.branches"); err != nil {
		return nil, err
	}
	if err := args.Tags.check("with.tags"); err != nil {
		return nil, err
	}
	plain := func(s string) string { return strings.TrimSuffix(strings.TrimPrefix(s, "git+"), ".git") }
	return func(f facts) result {
		p := f.Provenance
		l := looked{"provenance.verified": p.Verified, "provenance.builder": p.Builder, "provenance.source": p.Source, "provenance.ref": p.Ref}
		var wrong, remedies []string
		switch {
		case !p.Verified:
			return refuse(l, "promote an image that has signed provenance; an image that was only just built has none yet",
				"there is no provenance that was verified")
		case args.Builder != "" && p.Builder != args.Builder:
			wrong = append(wrong, fmt.Sprintf("built by %s, not by %s", p.Builder, args.Builder))
			remedies = append(remedies, "build it with "+args.Builder)
		}
		if args.Source != "" && plain(p.Source) != plain(args.Source) {
			wrong = append(wrong, fmt.Sprintf("built from %s, not from %s", p.Source, args.Source))
			remedies = append(remedies, "build it from "+args.Source)
		}
		if len(args.Branches)+len(args.Tags) > 0 && !args.Branches.match(p.Branch) && !args.Tags.match(p.Tag) {
			var want []string
			if len(args.Branches) > 0 {
				want = append(want, "a branch "+strings.Join(args.Branches, ", "))
			}
			if len(args.Tags) > 0 {
				want = append(want, "a tag "+strings.Join(args.Tags, ", "))
			}
			wrong = append(wrong, fmt.Sprintf("built from %s, not from %s", p.Ref, strings.Join(want, " or ")))
			remedies = append(remedies, "build it from "+strings.Join(want, " or "))
		}
		if len(wrong) > 0 {
			return refuse(l, strings.Join(remedies, "; "), "%s", strings.Join(wrong, "; "))
		}
		return pass(l, "built by %s from %s, %s", p.Builder, p.Source, p.Ref)
	}, nil
}

func notFork(a arguments) (func(facts) result, error) {
	return func(f facts) result {
		l := looked{"provenance.verified": f.Provenance.Verified, "provenance.fork": f.Provenance.Fork}
		switch {
		case f.Provenance.Fork:
			return refuse(l, "merge the commit into the project's own repository and build it from there", "the commit came from somebody else's repository")
		case !f.Provenance.Verified:
			return refuse(l, "promote an image that has signed provenance; an image that was only just built has none yet",
				"there is no provenance that was verified, so it is not known where the commit came from")
		}
		return pass(l, "the commit came from the project's own repository")
	}, a.none()
}
