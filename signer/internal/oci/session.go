package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/dray-project/dray/pipeline"
)

// Session is an authenticated way into one repository, meant for one
// operation: a token that it was given may not outlive that.
type Session struct {
	Repository name.Repository

	transport http.RoundTripper
	puller    *remote.Puller
}

func newSession(repo name.Repository, rt http.RoundTripper) (*Session, error) {
	p, err := remote.NewPuller(remote.WithTransport(rt))
	if err != nil {
		return nil, fmt.Errorf("prepare to read %s: %w", repo, err)
	}
	return &Session{Repository: repo, transport: rt, puller: p}, nil
}

// Options are for library calls that take part in this session.
func (s *Session) Options(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithTransport(s.transport), remote.WithContext(ctx)}
}

// Manifest is one as the registry served it.
type Manifest struct {
	Raw       []byte
	MediaType types.MediaType
	Digest    pipeline.Digest // of Raw
}

// Manifest reads a manifest by tag or digest. What is read by digest has that
// digest.
func (s *Session) Manifest(ctx context.Context, ref name.Reference) (*Manifest, error) {
	d, err := s.puller.Get(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("read the manifest %s: %w", ref, err)
	}
	sum := sha256.Sum256(d.Manifest)
	m := &Manifest{Raw: d.Manifest, MediaType: d.MediaType, Digest: pipeline.Digest("sha256:" + hex.EncodeToString(sum[:]))}
	if want, ok := ref.(name.Digest); ok && want.DigestStr() != string(m.Digest) {
		return nil, fmt.Errorf("read the manifest %s: the registry served %s", ref, m.Digest)
	}
	return m, nil
}

// Blob reads a blob of at most bound bytes and checks its size and digest
// against the descriptor.
func (s *Session) Blob(ctx context.Context, d v1.Descriptor, bound int64) ([]byte, error) {
	what := "blob " + d.Digest.String()
	if d.Digest.Algorithm != "sha256" {
		return nil, fmt.Errorf("%s: want a sha256 digest", what)
	}
	if d.Size < 0 || d.Size > bound {
		return nil, &TooLarge{What: what, Bound: bound}
	}
	layer, err := s.puller.Layer(ctx, s.Repository.Digest(d.Digest.String()))
	if err != nil {
		return nil, fmt.Errorf("read the %s: %w", what, err)
	}
	body, err := layer.Compressed()
	if err != nil {
		return nil, fmt.Errorf("read the %s: %w", what, err)
	}
	defer body.Close()
	// Grown as it comes: the size is only what a manifest claims.
	b, err := io.ReadAll(io.LimitReader(body, d.Size+1))
	if err != nil {
		return nil, fmt.Errorf("read the %s: %w", what, err)
	}
	if int64(len(b)) != d.Size {
		return nil, fmt.Errorf("%s has another size than its descriptor's %d bytes", what, d.Size)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != d.Digest.Hex {
		return nil, fmt.Errorf("%s: the registry served other content", what)
	}
	return b, nil
}

// NotFound reports whether the registry answered that there is no such thing.
func NotFound(err error) bool {
	var t *transport.Error
	return errors.As(err, &t) && t.StatusCode == http.StatusNotFound
}

// Unavailable reports whether err says nothing about the content: the registry
// could not be asked, or did not answer.
func Unavailable(err error) bool {
	var t *transport.Error
	if errors.As(err, &t) {
		return t.StatusCode != http.StatusNotFound
	}
	var u *url.Error
	var n net.Error
	return errors.As(err, &n) || errors.As(err, &u) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.ErrUnexpectedEOF)
}
