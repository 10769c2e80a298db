package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// known wraps a rule over what is only known of an image that was looked into:
// what is not known refuses.
func known(check func(facts) result) func(facts) result {
	return func(f facts) result {
		if !f.Hygiene.Known {
			return refuse(looked{"hygiene.known": false}, "run the scan again with a current Dray",
				"the scan did not look into the image of every platform")
		}
		return check(f)
	}
}

func nonRoot(a arguments) (func(facts) result, error) {
	return func(f facts) result {
		l := looked{"hygiene.root": f.Hygiene.Root, "hygiene.users": few(f.Hygiene.Users)}
		if len(f.Hygiene.Users) == 0 {
			return refuse(l, "run the scan again", "it is not known as whom the image starts: no platform was scanned")
		}
		var root []string
		for _, u := range f.Hygiene.Users {
			platform, user, _ := strings.Cut(u, ": ")
			if isRoot(user) {
				root = append(root, fmt.Sprintf("%s (USER is %s)", platform, user))
			}
		}
		if len(root) == 0 && f.Hygiene.Root {
			root = f.Hygiene.Users
		}
		if len(root) > 0 {
			return refuse(l, "set a numeric USER other than 0 in the last stage of the Dockerfile", "starts as root: %s", strings.Join(root, ", "))
		}
		return pass(l, "no platform starts as root")
	}, a.none()
}

// isRoot reads USER as an image's configuration has it: "user", "user:group".
func isRoot(user string) bool {
	name, _, _ := strings.Cut(user, ":")
	n, err := strconv.ParseUint(name, 10, 32)
	return name == "" || name == "not set" || name == "root" || err == nil && n == 0
}

func noShell(a arguments) (func(facts) result, error) {
	return absent("hygiene.shells", "shell", "start from a base without a shell, such as scratch or a distroless one, or copy only the program into the last stage",
		func(f facts) []string { return f.Hygiene.Shells }), a.none()
}

func noPackageManager(a arguments) (func(facts) result, error) {
	return absent("hygiene.packageManagers", "package manager", "copy only the program into a last stage that starts from a base without a package manager",
		func(f facts) []string { return f.Hygiene.PackageManagers }), a.none()
}

// absent refuses an image that has any of a kind of file.
func absent(fact, what, remedy string, of func(facts) []string) func(facts) result {
	return known(func(f facts) result {
		have := of(f)
		l := looked{fact: few(have)}
		if len(have) == 0 {
			return pass(l, "there is no %s in the image", what)
		}
		return refuse(l, remedy, "there is a %s in the image: %s", what, some(have, 5, ", "))
	})
}

func noSetuid(a arguments) (func(facts) result, error) {
	var args struct {
		Allow []string `json:"allow"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	for _, p := range args.Allow {
		if !strings.HasPrefix(p, "/") {
			return nil, fmt.Errorf("with.allow: %.80q is not an absolute path: %w", p, pipeline.ErrInvalid)
		}
	}
	return known(func(f facts) result {
		l := looked{"hygiene.setuid": few(f.Hygiene.Setuid)}
		var have []string
		for _, p := range f.Hygiene.Setuid {
			// The listing of an image may name its files from the root or not.
			if !slices.Contains(args.Allow, "/"+strings.TrimPrefix(p, "/")) {
				have = append(have, p)
			}
		}
		switch allowed := len(f.Hygiene.Setuid) - len(have); {
		case len(have) > 0:
			return refuse(l, "remove the bit in the Dockerfile, with chmod a-s, in the stage and layer that brings the files in",
				"%d file(s) run with another's rights (setuid or setgid): %s", len(have), some(have, 5, ", "))
		case allowed > 0:
			return pass(l, "no setuid or setgid file but %d that are allowed", allowed)
		}
		return pass(l, "no setuid or setgid file")
	}), nil
}

func noConfigSecrets(a arguments) (func(facts) result, error) {
	return known(func(f facts) result {
		var have []string
		for _, s := range f.Hygiene.Secrets {
			have = append(have, fmt.Sprintf("%s %s (%s)", s.Where, s.Name, s.Rule))
		}
		l := looked{"hygiene.secrets": few(have)}
		if len(have) == 0 {
			return pass(l, "nothing in the configuration of the image looks like a secret")
		}
		return refuse(l, "revoke what has leaked, and give it to the build with RUN --mount=type=secret instead of ENV, ARG or LABEL",
			"the configuration of the image has what looks like %d secret(s): %s", len(have), some(have, 5, ", "))
	}), a.none()
}

func healthcheck(a arguments) (func(facts) result, error) {
	return known(func(f facts) result {
		l := looked{"hygiene.healthcheck": f.Hygiene.Healthcheck}
		if f.Hygiene.Healthcheck {
			return pass(l, "every platform has a health check")
		}
		return refuse(l, "add a HEALTHCHECK to the last stage of the Dockerfile", "there is no health check on every platform")
	}), a.none()
}

// pinnedBases looks at the source, not at the scan: it is known of every build.
func pinnedBases(a arguments) (func(facts) result, error) {
	return func(f facts) result {
		var loose, all []string
		for _, b := range f.Hygiene.Bases {
			all = append(all, b.URI)
			if !b.Pinned {
				loose = append(loose, b.URI)
			}
		}
		l := looked{"hygiene.basesPinned": f.Hygiene.BasesPinned, "hygiene.bases": few(all)}
		switch {
		case len(loose) > 0 || !f.Hygiene.BasesPinned:
			return refuse(l, "write the digest behind the name in FROM and COPY --from: name:tag@sha256:…",
				"%d base(s) are not named by digest: %s", len(loose), some(loose, 5, ", "))
		case len(all) == 0:
			return pass(l, "the image has no base")
		}
		return pass(l, "every base is named by digest (%d)", len(all))
	}, a.none()
}

func maxSize(a arguments) (func(facts) result, error) {
	var args struct {
		Bytes      byteSize `json:"bytes"`
		Compressed bool     `json:"compressed"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	if args.Bytes <= 0 {
		return nil, fmt.Errorf(`with.bytes is required: how large the image may be, such as "200MiB": %w`, pipeline.ErrInvalid)
	}
	return known(func(f facts) result {
		size, fact, how := f.Hygiene.Size, "hygiene.size", "unpacked"
		if args.Compressed {
			size, fact, how = f.Hygiene.Compressed, "hygiene.compressed", "compressed"
		}
		l := looked{fact: size}
		if size > int64(args.Bytes) {
			return refuse(l, "copy only what is needed into the last stage, or start from a smaller base",
				"the largest platform has %s %s; at most %s is allowed", byteSize(size), how, args.Bytes)
		}
		return pass(l, "the largest platform has %s %s, at most %s is allowed", byteSize(size), how, args.Bytes)
	}), nil
}

func maxWasted(a arguments) (func(facts) result, error) {
	var args struct {
		Bytes   *byteSize `json:"bytes"`
		Percent *float64  `json:"percent"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	switch {
	case args.Bytes == nil && args.Percent == nil:
		return nil, fmt.Errorf(`with.bytes or with.percent is required: how much may be wasted, such as "20MiB" or 5: %w`, pipeline.ErrInvalid)
	case args.Percent != nil && (*args.Percent < 0 || *args.Percent > 100):
		return nil, fmt.Errorf("with.percent is %v: want 0 to 100: %w", *args.Percent, pipeline.ErrInvalid)
	}
	return known(func(f facts) result {
		wasted, size := f.Hygiene.Wasted, f.Hygiene.Size
		share := 0.0
		if size > 0 {
			share = 100 * float64(wasted) / float64(size)
		}
		l := looked{"hygiene.wasted": wasted, "hygiene.size": size}
		const remedy = "remove files in the layer that brought them in: join the RUN instructions, or use RUN --mount=type=cache"
		if args.Bytes != nil && wasted > int64(*args.Bytes) {
			return refuse(l, remedy, "later layers replace or remove %s; at most %s is allowed", byteSize(wasted), *args.Bytes)
		}
		if args.Percent != nil && share > *args.Percent {
			return refuse(l, remedy, "later layers replace or remove %s, %s %% of the image; at most %s %% is allowed", byteSize(wasted), trimNumber(share), trimNumber(*args.Percent))
		}
		return pass(l, "later layers replace or remove %s, %s %% of the image", byteSize(wasted), trimNumber(share))
	}), nil
}

func noLint(a arguments) (func(facts) result, error) {
	var args struct {
		Rules  []string `json:"rules"`
		Except []string `json:"except"`
	}
	if err := a.into(&args); err != nil {
		return nil, err
	}
	for _, name := range slices.Concat(args.Rules, args.Except) {
		if name == "" {
			return nil, fmt.Errorf("with.rules and with.except: want names such as SecretsUsedInArgOrEnv: %w", pipeline.ErrInvalid)
		}
	}
	return func(f facts) result {
		var have, remedies, all []string
		for _, x := range f.Hygiene.Lint {
			all = append(all, x.Rule)
			if len(args.Rules) > 0 && !slices.Contains(args.Rules, x.Rule) || slices.Contains(args.Except, x.Rule) {
				continue
			}
			where := ""
			if x.Line > 0 {
				where = fmt.Sprintf(" in line %d", x.Line)
			}
			have = append(have, fmt.Sprintf("%s%s: %s", x.Rule, where, x.Detail))
			if x.Remedy != "" && !slices.Contains(remedies, x.Remedy) {
				remedies = append(remedies, x.Remedy)
			}
		}
		l := looked{"hygiene.lint": few(all)}
		switch ignored := len(all) - len(have); {
		case len(have) > 0:
			remedy := some(remedies, 5, "; ")
			if remedy == "" {
				remedy = "mend the Dockerfile as the findings say"
			}
			return refuse(l, remedy, "the checks object to the Dockerfile %d time(s): %s", len(have), some(have, 5, ", "))
		case ignored > 0:
			return pass(l, "the checks object to nothing in the Dockerfile that counts here (%d ignored)", ignored)
		}
		return pass(l, "the checks object to nothing in the Dockerfile")
	}, nil
}
