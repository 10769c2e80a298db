package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
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

// askAbove is the size from which a question costs nothing beside the transfer:
// such blobs are looked for before they are sent, and afterwards whatever the
// registry said of them.
const askAbove = 1 << 20

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
		return false, &differsError{fmt.Errorf("the registry answers for another blob, %s", clean(said, 80))}
	}
	if res.ContentLength >= 0 && res.ContentLength != d.Size {
		return false, &differsError{fmt.Errorf("the registry says that it has %d bytes, the manifest says %d", res.ContentLength, d.Size)}
	}
	return true, nil
}

// differsError: there is something, and it is not what its digest says.
type differsError struct{ error }

func (e *differsError) Unwrap() error { return e.error }

// copyBlob brings one blob over. When it returns nil, the destination has
// confirmed that it holds the digest: by naming it in its answer to the upload
// or the mount, or, if it did not or the blob is large, when it was asked
// afterwards. With look, it is asked first whether it has it.
func (r *Registry) copyBlob(ctx context.Context, from, to *repository, d descriptor, look bool) (delivery, error) {
	if from.host == to.host {
		to = to.with(from.name.Scope(ggcr.PullScope))
	}
	for first := true; ; first = false {
		// Handshakes come before the slots are taken: who waits for another's
		// handshake must not hold what that one needs.
		for _, p := range []*repository{from, to} {
			if _, err := p.client(ctx); err != nil {
				return 0, r.explain(p.host, "copy blob", blobName(p, d), err)
			}
		}
		held, release, err := r.transport.limits.hold(ctx, from.host, to.host)
		if err != nil {
			return 0, err
		}
		b := blobCopy{r: r, from: from, to: to, d: d, look: look}
		how, err := b.run(held)
		release()
		if !errors.Is(err, errHandshake) || !first {
			return how, err
		}
	}
}

// blobCopy is one blob on its way. Attempts after the first go on where the one
// before broke off, where the registry can.
type blobCopy struct {
	r        *Registry
	from, to *repository
	d        descriptor
	look     bool

	upload *upload         // under way; nil when there is none
	wrong  pipeline.Digest // what came instead, the last time
}

func (b *blobCopy) run(ctx context.Context) (how delivery, err error) {
	defer func() {
		if b.upload != nil {
			b.to.abandon(ctx, b.upload.at)
		}
	}()
	err = b.r.again(ctx, func() error {
		h, err := b.try(ctx)
		// What a broken attempt sent may be there in the next one.
		if b.look = true; h > how {
			how = h
		}
		var c *changedError
		if errors.As(err, &c) {
			if c.got == b.wrong {
				return pipeline.Permanent(err) // the same again is no accident of the line
			}
			b.wrong = c.got
		}
		return err
	})
	return how, err
}

func (b *blobCopy) try(ctx context.Context) (delivery, error) {
	r, to, d := b.r, b.to, b.d
	known := r.learned
	within := b.from.host == to.host
	// A mount answers whether the registry has the blob and opens an upload if it
	// has not. One that cannot mount would be sent what it has, so that it is
	// asked first, unless that is sent as soon as asked.
	if b.look || (!within && d.Size > askAbove && !known.has(known.mount, to.host)) {
		there, err := to.has(ctx, d)
		if err != nil {
			return skipped, r.explain(to.host, "look for blob", blobName(to, d), err)
		}
		if there {
			return skipped, nil
		}
	}
	if b.upload == nil || !b.resume(ctx) {
		source := ""
		switch {
		case within:
			source = b.from.name.RepositoryStr()
		case !b.look:
			source = to.name.RepositoryStr()
		}
		at, named, err := to.start(ctx, source, d)
		if err != nil {
			return skipped, r.explain(to.host, "start the upload of blob", blobName(to, d), err)
		}
		if at == nil {
			how := skipped
			if within {
				how = mounted
			}
			return how, b.confirm(ctx, named)
		}
		b.upload = &upload{at: at}
		if within && !b.look && d.Size > askAbove {
			there, err := to.has(ctx, d)
			if err != nil || there {
				return skipped, r.explain(to.host, "look for blob", blobName(to, d), err)
			}
		}
	}
	named, err := r.stream(ctx, b.from, to, d, b.upload)
	if err != nil {
		return sent, err
	}
	b.upload = nil
	return sent, b.confirm(ctx, named && d.Size <= askAbove)
}

// confirm asks for the blob unless the registry's answer named it.
func (b *blobCopy) confirm(ctx context.Context, named bool) error {
	if named {
		return nil
	}
	there, err := b.to.has(ctx, b.d)
	if err == nil && !there {
		err = errNotKept
	}
	return b.r.explain(b.to.host, "confirm blob", blobName(b.to, b.d), err)
}

func blobName(p *repository, d descriptor) string { return fmt.Sprintf("%s of %s", d.Digest, p) }

// start mounts the blob from a repository of the same registry, which may be
// the destination itself, or opens an upload and returns where to send it
// (distribution specification, "Mounting a blob from another repository", "POST
// then PUT"). at is nil without an error when the registry has the blob now;
// named: its answer says so by the digest. Without a source, nothing is
// mounted.
func (p *repository) start(ctx context.Context, source string, d descriptor) (at *url.URL, named bool, err error) {
	query := url.Values{}
	if source != "" {
		query.Set("mount", string(d.Digest))
		query.Set("from", source)
	}
	if ctx.Err() != nil {
		return nil, false, context.Cause(ctx)
	}
	// The answer is waited for a little even when the copy is cancelled: without
	// it nobody could cancel the upload.
	patient, cancel := grace(ctx, 5*time.Second)
	defer cancel()
	res, err := p.do(patient, request{method: http.MethodPost, url: p.url("blobs/uploads/", query)})
	if err != nil {
		return nil, false, err
	}
	defer closeBody(res)
	if source != "" && res.StatusCode == http.StatusCreated {
		if source == p.name.RepositoryStr() {
			p.r.learned.note(p.r.learned.mount, p.host)
		}
		return nil, names(res, d.Digest), nil
	}
	if err := checkStatus(res, http.StatusAccepted); err != nil {
		switch statusOf(err) {
		case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
			if source == p.name.RepositoryStr() {
				// It does not see the sense in mounting from itself.
				return p.start(ctx, "", d)
			}
		}
		return nil, false, err
	}
	at, err = location(res)
	return at, false, err
}

// names reports whether an answer to an upload or a mount says which blob there
// is now.
func names(res *http.Response, d pipeline.Digest) bool {
	if said := res.Header.Get("Docker-Content-Digest"); said != "" {
		return said == string(d)
	}
	at, err := url.Parse(res.Header.Get("Location"))
	return err == nil && path.Base(at.Path) == string(d)
}

// location is where an upload goes on.
func location(res *http.Response) (*url.URL, error) {
	said := res.Header.Get("Location")
	at, err := res.Request.URL.Parse(said)
	if err != nil || said == "" {
		return nil, fmt.Errorf("the registry did not say where to upload to (Location: %q)", clean(said, 200))
	}
	return at, nil
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
		at, _, err := p.start(ctx, "", d)
		if err != nil {
			return err
		}
		query := at.Query()
		query.Set("digest", string(d.Digest))
		at.RawQuery = query.Encode()
		res, err := p.do(ctx, request{
			method: http.MethodPut, url: at, body: bytes.NewReader(body),
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
