package builder

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"github.com/moby/buildkit/client/llb"

	"github.com/dray-project/dray/pipeline"
)

// remote is a git repository that buildkitd may fetch from.
type remote struct {
	url    string // without credentials
	origin string // scheme and host
	host   string // host and port, as buildkitd names secrets
}

// parseRemote accepts https, http and git URLs. Everything else (ext::, file://,
// paths, options in disguise) is refused: git would run or read things locally.
func parseRemote(raw string) (remote, error) {
	refuse := func(why string) (remote, error) {
		return remote{}, pipeline.Permanent(fmt.Errorf("clone URL %q: %s: %w", redact(raw), why, pipeline.ErrInvalid))
	}
	if raw == "" || strings.HasPrefix(raw, "-") || strings.ContainsFunc(raw, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return refuse("is empty, starts with a dash or has spaces or control characters in it")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return refuse("is not a URL")
	}
	switch u.Scheme {
	case "https", "http", "git":
	case "ssh":
		return refuse("ssh needs a key in buildkitd's reach, which Dray does not hand out; use https with a token in the git credentials")
	default:
		return refuse("want https://, http:// or git://")
	}
	switch {
	case u.Hostname() == "" || strings.HasPrefix(u.Host, "-"):
		return refuse("has no host")
	case u.User != nil:
		return refuse("has credentials in it; put them into the git credentials of that origin")
	case u.RawQuery != "" || u.Fragment != "":
		return refuse("has a query or a fragment; give the repository's URL alone")
	case strings.Trim(u.Path, "/") == "":
		return refuse("has no path")
	}
	for seg := range strings.SplitSeq(u.Path, "/") {
		if seg == ".." || strings.HasPrefix(seg, "-") {
			return refuse("has a path segment that is .. or starts with a dash")
		}
	}
	return remote{url: raw, origin: u.Scheme + "://" + u.Host, host: u.Host}, nil
}

// redact removes the credentials from a URL that is about to be shown.
func redact(raw string) string {
	if u, err := url.Parse(raw); err == nil {
		return u.Redacted()
	}
	if at := strings.LastIndex(raw, "@"); at >= 0 {
		return "***" + raw[at:]
	}
	return raw
}

// checkRef applies the rules of git check-ref-format to a complete branch or
// tag reference.
func checkRef(ref string) error {
	refuse := func(why string) error {
		return pipeline.Permanent(fmt.Errorf("ref %q: %s: %w", ref, why, pipeline.ErrInvalid))
	}
	name, ok := strings.CutPrefix(ref, "refs/heads/")
	if !ok {
		name, ok = strings.CutPrefix(ref, "refs/tags/")
	}
	switch {
	case !ok || name == "":
		return refuse("want refs/heads/<branch> or refs/tags/<tag>")
	case len(ref) > 1024:
		return refuse("is longer than 1024 bytes")
	case strings.HasPrefix(name, "-"):
		return refuse("starts with a dash")
	case strings.Contains(ref, ".."), strings.Contains(ref, "@{"), strings.Contains(ref, "//"):
		return refuse("has .., @{ or // in it")
	case strings.HasSuffix(ref, "/"), strings.HasSuffix(ref, "."):
		return refuse("ends with / or .")
	case strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r) }):
		return refuse(`has spaces, control characters or one of ~^:?*[\ in it`)
	}
	for seg := range strings.SplitSeq(ref, "/") {
		if strings.HasPrefix(seg, ".") || strings.HasSuffix(seg, ".lock") {
			return refuse("has a part that starts with . or ends with .lock")
		}
	}
	return nil
}

// checkSHA accepts a full SHA-1 or SHA-256 object name.
func checkSHA(sha string) error {
	if _, err := hex.DecodeString(sha); err != nil || (len(sha) != 40 && len(sha) != 64) || strings.ToLower(sha) != sha {
		return pipeline.Permanent(fmt.Errorf("commit %q: want 40 or 64 lower-case hexadecimal digits: %w", sha, pipeline.ErrInvalid))
	}
	return nil
}

// gitAccess is a credential for one remote under names that are made up anew
// for each call, so that no Dockerfile can ask for it by name.
type gitAccess struct {
	header, token string // secret names, without the host
	secrets       map[string][]byte
}

func (b *Builder) gitAccess(r remote) gitAccess {
	a := gitAccess{secrets: map[string][]byte{}}
	id := hex.EncodeToString(randomBytes(16))
	a.header, a.token = "dray-git-header-"+id, "dray-git-token-"+id
	for origin, cred := range b.cfg.GitCredentials {
		if strings.TrimSuffix(origin, "/") != r.origin {
			continue
		}
		if cred.Username == "" {
			a.secrets[a.token+"."+r.host] = []byte(cred.Password)
		} else {
			basic := base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Password))
			a.secrets[a.header+"."+r.host] = []byte("basic " + basic)
		}
	}
	return a
}

// source is the git source at a reference. Submodules stay out, the .git
// directory is not kept, and git-lfs is not run: pointers stay pointers.
func (a gitAccess) source(r remote, ref string, opts ...llb.GitOption) llb.State {
	opts = append([]llb.GitOption{
		llb.GitRef(ref),
		llb.GitSkipSubmodules(),
		llb.AuthHeaderSecret(a.header),
		llb.AuthTokenSecret(a.token),
	}, opts...)
	return llb.Git(r.url, "", opts...)
}

// commit is the whole tree of one commit. It fetches that commit alone, and
// gives every file the commit's time.
func (a gitAccess) commit(r remote, sha string) llb.State {
	return a.source(r, sha,
		llb.GitChecksum(sha),
		llb.GitFetchByCommit(),
		llb.GitMTimeCommit(),
		llb.WithCustomName(sourceStep+r.url+" at "+sha))
}

// sourceStep is how the names of steps that fetch the source begin.
const sourceStep = "[source] "
