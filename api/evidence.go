package api

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/dray-project/dray/pipeline"
)

// EvidenceBundle is a file that is ready to be written.
type EvidenceBundle interface {
	// Size is how many bytes Write writes.
	Size() int64
	// Write writes the whole of it, once.
	Write(io.Writer) error
}

// bundlesAtOnce is how many bundles are made at once: each holds what the
// database and the registry's manifests say of an image, and asks for a signature.
const bundlesAtOnce = 2

const mediaTar = "application/x-tar"

func (a *API) registerEvidence() {
	turn := make(chan struct{}, bundlesAtOnce)
	handle(a, huma.Operation{
		OperationID: "get-image-evidence",
		Method:      http.MethodGet,
		Path:        "/api/v1/images/{digest}/evidence",
		Summary:     "Get an image's evidence bundle: all that it takes to check the image without Dray",
		Description: "A tar archive that is checked with `dray verify --bundle`. It holds nothing that a viewer of the project cannot ask for one by one.",
		Tags:        []string{"images"},
		Responses:   a.raw(mediaTar, "The bundle", 404, 409, 422),
	}, needRead, func(ctx context.Context, in *ImageInput) (*streamOutput, error) {
		detail, err := a.image(ctx, in)
		if err != nil {
			return nil, err
		}
		if a.Evidence == nil {
			return nil, disabled(ctx, "pack evidence")
		}
		select {
		case turn <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		done := func() { <-turn }
		// What can go wrong in the database or with the manifests does so before
		// anything is said. The turn lasts until the last byte.
		b, err := a.Evidence(ctx, detail.Project, detail.Image.Digest)
		if err != nil {
			done()
			return nil, err
		}
		return &streamOutput{func(hctx huma.Context) {
			defer done()
			a.sendEvidence(hctx, detail, b)
		}}, nil
	})
}

func (a *API) sendEvidence(hctx huma.Context, detail pipeline.ImageDetail, b EvidenceBundle) {
	r, w := humago.Unwrap(hctx)
	w.Header().Set("Content-Type", mediaTar)
	w.Header().Set("Content-Length", strconv.FormatInt(b.Size(), 10))
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", detail.Project+"-"+detail.Image.Digest.Short()+".evidence.tar"))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	if err := b.Write(&patient{w: w, rc: http.NewResponseController(w)}); err != nil {
		if r.Context().Err() == nil {
			a.Log.LogAttrs(r.Context(), slog.LevelWarn, "an evidence bundle broke off", slog.String("request", infoOf(r.Context()).id),
				slog.String("image", detail.Image.String()), slog.Any("error", err))
		}
		// The reader must not take what it has for all there is.
		panic(http.ErrAbortHandler)
	}
}

// patient gives every single write a deadline of its own.
type patient struct {
	w  io.Writer
	rc *http.ResponseController
}

func (p *patient) Write(b []byte) (int, error) {
	// Not every writer has deadlines; the write will tell what is wrong.
	_ = p.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	return p.w.Write(b)
}
