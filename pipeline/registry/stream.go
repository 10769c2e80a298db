package registry

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/hex"
	"errors"
	"fmt"
	gohash "hash"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/dray-project/dray/pipeline"
)

// upload is a blob's upload that is under way.
type upload struct {
	at *url.URL
	// offset is how many bytes the registry has.
	offset int64
	// sums are the hash's states while the bytes went through.
	sums []checkpoint
}

type checkpoint struct {
	n     int64 // bytes
	state []byte
}

// resume asks how much of a broken upload has arrived. If it cannot go on from
// there, the upload is cancelled, and it returns false.
func (b *blobCopy) resume(ctx context.Context) bool {
	if len(b.upload.sums) > 0 {
		at, offset, err := b.to.arrived(ctx, b.upload.at)
		// "0-0" is what some say of nothing.
		if err == nil && offset > 1 && offset < b.d.Size {
			b.upload.at, b.upload.offset = at, offset
			return true
		}
	}
	b.to.abandon(ctx, b.upload.at)
	b.upload = nil
	return false
}

// arrived asks an upload for its state (distribution specification, "Pushing a
// blob in chunks").
func (p *repository) arrived(ctx context.Context, upload *url.URL) (at *url.URL, offset int64, err error) {
	res, err := p.do(ctx, request{method: http.MethodGet, url: upload})
	if err != nil {
		return nil, 0, err
	}
	defer closeBody(res)
	if err := checkStatus(res, http.StatusNoContent, http.StatusAccepted, http.StatusOK); err != nil {
		return nil, 0, err
	}
	_, last, ok := strings.Cut(strings.TrimPrefix(res.Header.Get("Range"), "bytes="), "-")
	end, err := strconv.ParseInt(last, 10, 64)
	if !ok || err != nil {
		return nil, 0, fmt.Errorf("the upload's range %q", clean(res.Header.Get("Range"), 100))
	}
	if at, err = location(res); err != nil {
		at = upload
	}
	return at, end + 1, nil
}

// stream sends the source's bytes to the upload without keeping them, from
// where the upload stands. named: the registry's answer names the digest. After
// an error, the upload can be resumed or is to be cancelled by the caller.
func (r *Registry) stream(ctx context.Context, from, to *repository, d descriptor, up *upload) (named bool, err error) {
	// Cancelled when the upload ends early, so that the rest is not read.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	source, body, err := from.source(ctx, d, up)
	if err != nil {
		return false, r.explain(from.host, "read blob", blobName(from, d), err)
	}
	defer body.Close() //nolint:errcheck // read to its end or abandoned
	target := *up.at
	query := target.Query()
	query.Set("digest", string(d.Digest))
	target.RawQuery = query.Encode()
	q := request{
		method: http.MethodPut, url: &target, body: source, size: d.Size - up.offset,
		header: http.Header{"Content-Type": {"application/octet-stream"}},
	}
	resumed := up.offset > 0
	if resumed {
		q.header.Set("Content-Range", fmt.Sprintf("%d-%d", up.offset, d.Size-1))
	}
	if d.Size == 0 {
		if err := source.finish(); err != nil {
			return false, r.explain(from.host, "read blob", blobName(from, d), err)
		}
		q.body = http.NoBody
	}
	answer, err := to.do(ctx, q)
	sums, cause := source.result()
	up.sums = sums
	if cause != nil {
		// The source's fault breaks the upload; say the cause and not the effect.
		if err == nil {
			closeBody(answer)
		}
		if c := (*changedError)(nil); errors.As(cause, &c) {
			up.sums = nil // what arrived is not worth completing
		}
		return false, broken(r.explain(from.host, "read blob", blobName(from, d), cause))
	}
	if err == nil {
		defer closeBody(answer)
		if err = checkStatus(answer, http.StatusCreated, http.StatusOK, http.StatusNoContent); err != nil {
			up.sums = nil // it had the whole request: what it keeps of it is its affair
			if s := statusOf(err); resumed && s < 500 && s != http.StatusUnauthorized && s != http.StatusForbidden {
				// It does not like what it was left with; it may like the whole.
				return false, &brokenError{fmt.Errorf("registry %s: go on with the upload of blob %s at byte %d: %w",
					to.host, blobName(to, d), up.offset, err)}
			}
		}
	}
	if err != nil {
		return false, broken(r.explain(to.host, "send blob", blobName(to, d), err))
	}
	return names(answer, d.Digest), nil
}

// source opens the blob for reading from where the upload stands. What the
// registry has already is not read again, except what lies between there and
// the last known state of the hash, or all of it if the source cannot start in
// the middle.
func (p *repository) source(ctx context.Context, d descriptor, up *upload) (*verified, io.Closer, error) {
	v := &verified{want: d, hash: sha256.New(), step: max(askAbove, d.Size/1024)}
	q := request{method: http.MethodGet, url: p.url("blobs/"+string(d.Digest), nil)}
	if up.offset > 0 {
		for i := len(up.sums) - 1; i >= 0; i-- {
			if c := up.sums[i]; c.n <= up.offset && v.restore(c) == nil {
				v.sums = up.sums[:i+1]
				break
			}
		}
		if v.n > 0 {
			q.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-", v.n)}}
		}
	}
	res, err := p.do(ctx, q)
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*verified, io.Closer, error) {
		_ = res.Body.Close()
		return nil, nil, err
	}
	if err := checkStatus(res, http.StatusOK, http.StatusPartialContent); err != nil {
		return fail(err)
	}
	switch {
	case res.StatusCode == http.StatusOK:
		v.hash.Reset()
		v.n, v.sums = 0, nil
	case v.n == 0 || !strings.HasPrefix(res.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", v.n)):
		return fail(fmt.Errorf("the registry sent another part than it was asked for (%s)", clean(res.Header.Get("Content-Range"), 100)))
	}
	if res.ContentLength >= 0 && res.ContentLength != d.Size-v.n {
		return fail(refuse("it has %d bytes, the manifest says %d", v.n+res.ContentLength, d.Size))
	}
	v.src = res.Body
	if _, err := io.CopyN(io.Discard, v, up.offset-v.n); err != nil {
		return fail(err)
	}
	return v, res.Body, nil
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
	step int64 // bytes between two states of the hash that are kept

	// The transport may still read when it has an answer already.
	mu   sync.Mutex
	n    int64
	sums []checkpoint
	err  error // anything but io.EOF
}

// result is the states of the hash, and the fault of the source, nil if it has
// none. Nothing is read afterwards.
func (v *verified) result() (sums []checkpoint, fault error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fault = v.err
	if v.err == nil && v.n < v.want.Size {
		v.err = errors.New("the upload is over")
	}
	return v.sums, fault
}

// restore goes back to a state. On an error, nothing has changed.
func (v *verified) restore(c checkpoint) error {
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(c.state); err != nil {
		return err
	}
	v.hash, v.n = h, c.n
	return nil
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
	if last := len(v.sums) - 1; v.n >= v.step && (last < 0 || v.n-v.sums[last].n >= v.step) {
		if state, err := v.hash.(encoding.BinaryMarshaler).MarshalBinary(); err == nil {
			v.sums = append(v.sums, checkpoint{v.n, state})
		}
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
