//go:build goexperiment.jsonv2

package scanner

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/dray-project/dray/pipeline"
)

// layerReader hashes what passes, counts it against the image's bound, and lists
// the files in it, so that a layer is read once for all that is wanted of it.
type layerReader struct {
	layer *remoteLayer
	rc    io.ReadCloser
	hash  hash.Hash
	size  int64
	// buf is filled in large pieces, and rest is what was not yet given on.
	// Trivy asks for a header of 512 bytes at a time.
	buf, rest []byte
	err       error

	// What passes goes into the pipe, and what was listed comes out of the channel.
	pipe   *io.PipeWriter
	listed <-chan listed
	once   sync.Once
}

type listed struct {
	listing []byte
	err     error
}

func newLayerReader(l *remoteLayer, rc io.ReadCloser) *layerReader {
	out, in := io.Pipe()
	done := make(chan listed, 1)
	go func() {
		var res listed
		res.listing, res.err = listSafely(out)
		var bound tooMuch
		if errors.As(res.err, &bound) {
			_ = out.CloseWithError(res.err)
		} else {
			// What is behind the archive's end still passes; what is wrong with
			// the archive is for Trivy to say first.
			_, _ = io.Copy(io.Discard, out)
		}
		done <- res
	}()
	return &layerReader{layer: l, rc: rc, hash: sha256.New(), buf: make([]byte, 64<<10), pipe: in, listed: done}
}

func listSafely(r io.Reader) (listing []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("reading the archive failed: %v", p)
		}
	}()
	return list(r)
}

func (r *layerReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.err == nil {
			r.rest, r.err = r.next()
		}
		if len(r.rest) == 0 {
			return 0, r.err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next reads a piece. The end of the layer is an error but when the layer is
// what the configuration says.
func (r *layerReader) next() ([]byte, error) {
	image, diffID := r.layer.image, r.layer.diffID
	n, err := r.rc.Read(r.buf)
	piece := r.buf[:n]
	r.hash.Write(piece)
	r.size += int64(n)
	if image.read.Add(int64(n)) > image.max {
		return nil, image.fail(pipeline.Permanent(fmt.Errorf(
			"unpacked, it has more than %d bytes, which is what the scanner reads at most (raise its maximum image size if the image is right)", image.max)))
	}
	if n > 0 {
		if _, err := r.pipe.Write(piece); err != nil {
			return nil, image.fail(pipeline.Permanent(fmt.Errorf("layer %s: %w", diffID, err)))
		}
	}
	switch {
	case err == nil:
		return piece, nil
	case !errors.Is(err, io.EOF):
		return piece, image.fail(fmt.Errorf("layer %s: %w", diffID, err))
	}
	_ = r.pipe.Close()
	res := <-r.listed
	r.listed = nil
	if got := fmt.Sprintf("%x", r.hash.Sum(nil)); diffID.Algorithm != "sha256" || got != diffID.Hex {
		return piece, image.fail(pipeline.Permanent(fmt.Errorf(
			"layer %s unpacks to sha256:%s: the image's configuration and its layers do not belong together", diffID, got)))
	}
	if res.err != nil {
		err := fmt.Errorf("layer %s: list its files: %w", diffID, res.err)
		var bound tooMuch
		if errors.As(res.err, &bound) {
			err = pipeline.Permanent(err)
		}
		return piece, image.fail(err)
	}
	image.mu.Lock()
	image.verified[diffID.String()] = readLayer{res.listing, r.size}
	image.mu.Unlock()
	return piece, io.EOF
}

// Close frees the layer's slot and waits for what lists its files.
func (r *layerReader) Close() error {
	err := r.rc.Close()
	r.once.Do(func() {
		_ = r.pipe.CloseWithError(errors.New("the layer was not read to its end"))
		if r.listed != nil {
			<-r.listed
		}
		<-r.layer.image.slots
	})
	return err
}
