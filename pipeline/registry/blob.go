package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	gohash "hash"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/dray-project/dray/pipeline"
)

// delivery says how a blob came to be at the destination.
type delivery int

const (
	skipped delivery = iota // it was there
	mounted                 // the registry took it from another repository of its own
	sent                    // its bytes went over the line
)

var errNotKept = errors.New("the registry accepted the blob but does not have it")

// has reports whether the destination has the blob. Another size than the
// descriptor's is an error.
func (p *repository) has(ctx context.Context, d descriptor) (bool, error) {
	res, err := p.do(ctx, request{method: http.MethodHead, url: p.url("blobs/"+string(d.Digest), nil)})
	if err != nil {
		return false, err
	}
	defer closeBody(res)
	if res.StatusCode == http.StatusNotFound {
		return false, nil
	}
	if err := checkStatus(res, http.StatusOK); err != nil {
		return false, err
	}
	if said := res.Header.Get("Docker-Content-Digest"); said != "" && said != string(d.Digest) {
		return false, fmt.Errorf("the registry answers for another blob, %s", clean(said, 80))
	}
	if res.ContentLength >= 0 && res.ContentLength != d.Size {
		return false, fmt.Errorf("the registry says that it has %d bytes, the manifest says %d", res.ContentLength, d.Size)
	}
	return true, nil
}

// copyBlob brings one blob over. When it returns nil, the destination has
// confirmed that it holds the digest with its size.
func (r *Registry) copyBlob(ctx context.Context, from, to *repository, d descriptor) (delivery, error) {
	mount := from.host == to.host
	if mount {
		to = to.with(from.name.Scope(ggcr.PullScope))
	}
	// Handshakes come before the slots are taken: who waits for another's
	// handshake must not hold what that one needs.
	for _, p := range []*repository{from, to} {
		if _, err := p.client(ctx); err != nil {
			return 0, r.explain(p.host, "copy blob", blobName(p, d), err)
		}
	}
	ctx, release, err := r.transport.limits.hold(ctx, from.host, to.host)
	if err != nil {
		return 0, err
	}
	defer release()
	how := skipped
	var wrong pipeline.Digest // what came instead, the last time
	err = r.again(ctx, func() error {
		there, err := to.has(ctx, d)
		if err != nil {
			return r.explain(to.host, "look for blob", blobName(to, d), err)
		}
		if there {
			return nil // after a broken attempt this is that attempt's work
		}
		upload, err := to.start(ctx, from, d, mount)
		switch {
		case err != nil:
			return r.explain(to.host, "start the upload of blob", blobName(to, d), err)
		case upload == nil:
			how, mount = mounted, false
		default:
			how = sent
			if err := r.stream(ctx, from, to, d, upload); err != nil {
				to.abandon(ctx, upload)
				var c *changedError
				if errors.As(err, &c) {
					if c.got == wrong {
						return pipeline.Permanent(err) // the same again is no accident of the line
					}
					wrong = c.got
				}
				return err
			}
		}
		there, err = to.has(ctx, d)
		if err == nil && !there {
			err = errNotKept
		}
		return r.explain(to.host, "confirm blob", blobName(to, d), err)
	})
	return how, err
}

func blobName(p *repository, d descriptor) string { return fmt.Sprintf("%s of %s", d.Digest, p) }

// start mounts the blob (nil without error) or opens an upload and returns
// where to send it (distribution specification, "Mounting a blob from another
// repository", "POST then PUT").
func (p *repository) start(ctx context.Context, from *repository, d descriptor, mount bool) (*url.URL, error) {
	query := url.Values{}
	if mount {
		query.Set("mount", string(d.Digest))
		query.Set("from", from.name.RepositoryStr())
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	// The answer is waited for a little even when the copy is cancelled: without
	// it nobody could cancel the upload.
	ctx, cancel := grace(ctx, 5*time.Second)
	defer cancel()
	at := p.url("blobs/uploads/", query)
	res, err := p.do(ctx, request{method: http.MethodPost, url: at})
	if err != nil {
		return nil, err
	}
	defer closeBody(res)
	if mount && res.StatusCode == http.StatusCreated {
		return nil, nil
	}
	if err := checkStatus(res, http.StatusAccepted); err != nil {
		return nil, err
	}
	if res.Request != nil {
		at = res.Request.URL
	}
	location, err := at.Parse(res.Header.Get("Location"))
	if err != nil || res.Header.Get("Location") == "" {
		return nil, fmt.Errorf("the registry did not say where to upload to (Location: %q)", clean(res.Header.Get("Location"), 200))
	}
	return location, nil
}

// grace returns a context that ends some time after its parent.
func grace(parent context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		_ = sleep(ctx, d)
		cancel()
	})
	return ctx, func() { stop(); cancel() }
}

// stream sends the source's bytes to the upload without keeping them.
func (r *Registry) stream(ctx context.Context, from, to *repository, d descriptor, upload *url.URL) error {
	// Cancelled when the upload ends early, so that the rest is not read.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := from.do(ctx, request{method: http.MethodGet, url: from.url("blobs/"+string(d.Digest), nil)})
	if err == nil {
		defer res.Body.Close() //nolint:errcheck // read to its end or abandoned
		err = checkStatus(res, http.StatusOK)
	}
	if err == nil && res.ContentLength >= 0 && res.ContentLength != d.Size {
		err = refuse("it has %d bytes, the manifest says %d", res.ContentLength, d.Size)
	}
	if err != nil {
		return r.explain(from.host, "read blob", blobName(from, d), err)
	}
	source := &verified{src: res.Body, want: d, hash: sha256.New()}
	target := *upload
	query := target.Query()
	query.Set("digest", string(d.Digest))
	target.RawQuery = query.Encode()
	q := request{
		method: http.MethodPut, url: &target, body: source, size: d.Size,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
	}
	if d.Size == 0 {
		if err := source.finish(); err != nil {
			return r.explain(from.host, "read blob", blobName(from, d), err)
		}
		q.body = http.NoBody
	}
	answer, err := to.do(ctx, q)
	if cause := source.failed(); cause != nil {
		// The source's fault breaks the upload; say the cause and not the effect.
		if err == nil {
			closeBody(answer)
		}
		return broken(r.explain(from.host, "read blob", blobName(from, d), cause))
	}
	if err == nil {
		defer closeBody(answer)
		err = checkStatus(answer, http.StatusCreated, http.StatusOK, http.StatusNoContent)
	}
	return broken(r.explain(to.host, "send blob", blobName(to, d), err))
}

// brokenError: a stream broke. The transport cannot repeat it, its owner can.
type brokenError struct{ error }

func (e *brokenError) Unwrap() error { return e.error }

func broken(err error) error {
	if err == nil || pipeline.IsPermanent(err) {
		return err
	}
	return &brokenError{err}
}

// abandon cancels an upload that failed, so that the registry need not keep
// its beginning.
func (p *repository) abandon(ctx context.Context, upload *url.URL) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	res, err := p.do(ctx, request{method: http.MethodDelete, url: upload})
	if err != nil {
		p.r.log.DebugContext(ctx, "cancel an upload", "repository", p.String(), "error", withoutURL(err))
		return
	}
	closeBody(res)
}

// changedError: all bytes came, and they are not those of the digest.
type changedError struct{ want, got pipeline.Digest }

func (e *changedError) Error() string {
	return fmt.Sprintf("what came has the digest %s: it was changed on the way or in the registry", e.got)
}

// verified passes a blob's bytes on. It withholds the last of them unless all
// bytes together are what the descriptor says, so that a registry that does not
// check cannot complete the upload of anything else.
type verified struct {
	src  io.Reader
	want descriptor
	hash gohash.Hash

	// The transport may still read when it has an answer already.
	mu  sync.Mutex
	n   int64
	err error // anything but io.EOF
}

// failed is the fault of the source, nil if it has none.
func (v *verified) failed() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

func (v *verified) Read(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return 0, v.err
	}
	if v.n == v.want.Size {
		return 0, io.EOF
	}
	n, err := v.src.Read(p)
	v.n += int64(n)
	v.hash.Write(p[:n]) //nolint:errcheck // a hash never fails
	switch {
	case v.n > v.want.Size:
		v.err = refuse("it has more bytes than the %d that the manifest says", v.want.Size)
	case v.n == v.want.Size:
		v.err = v.finish()
	case err == io.EOF:
		v.err = fmt.Errorf("it broke off after %d of %d bytes: %w", v.n, v.want.Size, io.ErrUnexpectedEOF)
	case err != nil:
		v.err = fmt.Errorf("it broke off after %d of %d bytes: %w", v.n, v.want.Size, err)
	}
	if v.err != nil {
		return 0, v.err
	}
	return n, nil
}

// finish checks that there is no more and that the digest is right.
func (v *verified) finish() error {
	var more [1]byte
	for {
		n, err := v.src.Read(more[:])
		if n > 0 {
			return refuse("it has more bytes than the %d that the manifest says", v.want.Size)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("it broke off at its end: %w", err)
		}
	}
	if got := pipeline.Digest("sha256:" + hex.EncodeToString(v.hash.Sum(nil))); got != v.want.Digest {
		return &changedError{v.want.Digest, got}
	}
	return nil
}

// small reads a blob into memory: a config, not a layer.
func (p *repository) small(ctx context.Context, d descriptor) ([]byte, error) {
	var body []byte
	err := p.r.again(ctx, func() error {
		res, err := p.do(ctx, request{method: http.MethodGet, url: p.url("blobs/"+string(d.Digest), nil)})
		if err != nil {
			return err
		}
		defer closeBody(res)
		if err := checkStatus(res, http.StatusOK); err != nil {
			return err
		}
		if body, err = readBody(res, min(d.Size, p.r.limits.ManifestBytes)); err != nil {
			return err
		}
		if got := hash(body); got != d.Digest {
			return &changedError{d.Digest, got}
		}
		return nil
	})
	return body, p.r.explain(p.host, "read blob", blobName(p, d), err)
}

// push sends a blob from memory, unless it is there.
func (p *repository) push(ctx context.Context, d descriptor, body []byte) error {
	err := p.r.again(ctx, func() error {
		there, err := p.has(ctx, d)
		if err != nil || there {
			return err
		}
		upload, err := p.start(ctx, p, d, false)
		if err != nil {
			return err
		}
		query := upload.Query()
		query.Set("digest", string(d.Digest))
		upload.RawQuery = query.Encode()
		res, err := p.do(ctx, request{
			method: http.MethodPut, url: upload, body: bytes.NewReader(body),
			header: http.Header{"Content-Type": {"application/octet-stream"}},
		})
		if err != nil {
			return err
		}
		defer closeBody(res)
		if err := checkStatus(res, http.StatusCreated, http.StatusOK, http.StatusNoContent); err != nil {
			return err
		}
		if there, err = p.has(ctx, d); err == nil && !there {
			err = errNotKept
		}
		return err
	})
	return p.r.explain(p.host, "send blob", blobName(p, d), err)
}
