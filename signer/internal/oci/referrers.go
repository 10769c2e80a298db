package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxPages bounds how often a list of referrers may go on.
const maxPages = 100

// Referrers lists what refers to the manifest, as the registry says: nothing
// in the list was checked. Where the registry has no referrers API it reads the
// fallback tag (OCI distribution specification 1.1, "Listing Referrers"). A
// descriptor that appears more than once is returned once. More than bound of
// them is an error. from names the place that was asked, for messages.
func (s *Session) Referrers(ctx context.Context, subject name.Digest, bound int) (list []v1.Descriptor, from string, err error) {
	from = "the referrers API"
	list, served, err := s.referrersAPI(ctx, subject, bound)
	if err == nil && !served {
		tag := s.Repository.Tag(strings.Replace(subject.DigestStr(), ":", "-", 1))
		from = "the fallback tag " + tag.TagStr()
		list, err = s.fallback(ctx, tag)
	}
	if err != nil {
		return nil, from, fmt.Errorf("list the referrers of %s: %w", subject, err)
	}
	seen := map[v1.Hash]bool{}
	var unique []v1.Descriptor
	for _, d := range list {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			unique = append(unique, d)
		}
	}
	if len(unique) > bound {
		return nil, from, tooMany(subject, bound)
	}
	return unique, from, nil
}

func tooMany(subject name.Digest, bound int) error {
	return fmt.Errorf("list the referrers of %s: more than %d; delete what is not needed or raise the bound", subject, bound)
}

func (s *Session) fallback(ctx context.Context, tag name.Tag) ([]v1.Descriptor, error) {
	m, err := s.Manifest(ctx, tag)
	if NotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseIndex(m.Raw)
}

func parseIndex(raw []byte) ([]v1.Descriptor, error) {
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("the list is not an image index: %w", err)
	}
	return index.Manifests, nil
}

// referrersAPI follows the pages of the list. served is false when the
// registry has no such API.
func (s *Session) referrersAPI(ctx context.Context, subject name.Digest, bound int) (list []v1.Descriptor, served bool, err error) {
	next := &url.URL{
		Scheme: s.Repository.Scheme(),
		Host:   s.Repository.RegistryStr(),
		Path:   fmt.Sprintf("/v2/%s/referrers/%s", s.Repository.RepositoryStr(), subject.DigestStr()),
	}
	for page := 0; next != nil; page++ {
		if page == maxPages {
			return nil, true, fmt.Errorf("the list has more than %d pages", maxPages)
		}
		part, following, err := s.referrersPage(ctx, next)
		if errors.Is(err, errNoAPI) && page == 0 {
			return nil, false, nil
		}
		if err != nil {
			return nil, true, err
		}
		if list = append(list, part...); len(list) > 2*bound {
			return nil, true, tooMany(subject, bound)
		}
		next = following
	}
	return list, true, nil
}

var errNoAPI = errors.New("the registry has no referrers API")

func (s *Session) referrersPage(ctx context.Context, at *url.URL) ([]v1.Descriptor, *url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Accept", string(types.OCIImageIndex))
	client := &http.Client{Transport: s.transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 5 || r.URL.Host != at.Host {
			return fmt.Errorf("redirect to %s refused", r.URL.Redacted())
		}
		return nil
	}}
	res, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	// 404 is what the specification has for "no such API"; older registries
	// answer with one of the others.
	if err := transport.CheckError(res, http.StatusOK, http.StatusNotFound, http.StatusBadRequest,
		http.StatusMethodNotAllowed, http.StatusNotAcceptable); err != nil {
		return nil, nil, err
	}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if res.StatusCode != http.StatusOK || kind != string(types.OCIImageIndex) {
		return nil, nil, errNoAPI
	}
	var raw bytes.Buffer
	if _, err := io.Copy(&raw, res.Body); err != nil {
		return nil, nil, err
	}
	list, err := parseIndex(raw.Bytes())
	if err != nil {
		return nil, nil, err
	}
	next, err := nextPage(res.Header.Values("Link"), at)
	return list, next, err
}

// nextPage finds the address with rel=next (RFC 8288), which has to be at the
// same registry.
func nextPage(links []string, at *url.URL) (*url.URL, error) {
	for _, header := range links {
		for link := range strings.SplitSeq(header, ",") {
			target, params, ok := strings.Cut(strings.TrimSpace(link), ">")
			target, open := strings.CutPrefix(target, "<")
			if !ok || !open || !isNext(params) {
				continue
			}
			u, err := at.Parse(target)
			if err != nil {
				return nil, fmt.Errorf("the list's next page is at %q: %w", target, err)
			}
			if u.Host != at.Host {
				return nil, fmt.Errorf("the list's next page is at another host, %q", u.Host)
			}
			// The scheme is ours to choose: registries behind a proxy get it wrong.
			u.Scheme = at.Scheme
			return u, nil
		}
	}
	return nil, nil
}

func isNext(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(k, "rel") && strings.EqualFold(strings.Trim(v, `"`), "next") {
			return true
		}
	}
	return false
}
