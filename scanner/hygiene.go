//go:build goexperiment.jsonv2

package scanner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/dray-project/dray/pipeline"
)

// maxCreatedBy is how many characters of a history entry are told.
const maxCreatedBy = 1000

// hygiene reads what the image shows of how it was made. Its layers were read
// before, now or for another image.
func (i *remoteImage) hygiene(ctx context.Context, kept contents) (*pipeline.Hygiene, error) {
	found, err := kept.survey(ctx, i.config.RootFS.DiffIDs)
	if err != nil {
		var bound tooMuch
		if errors.As(err, &bound) {
			err = pipeline.Permanent(err)
		}
		return nil, fmt.Errorf("list its files: %w", err)
	}
	h := &pipeline.Hygiene{
		Shells:          found.Shells,
		PackageManagers: found.PackageManagers,
		Setuid:          found.Setuid,
		Secrets:         configSecrets(i.config),
		Healthcheck:     healthcheck(i.config.Config.Healthcheck),
		Wasted:          found.Wasted,
		Layers:          make([]pipeline.ImageLayer, 0, len(found.Sizes)),
	}
	by := createdBy(i.config.History, len(found.Sizes))
	for n, size := range found.Sizes {
		layer := pipeline.ImageLayer{
			Digest:     pipeline.Digest(i.manifest.Layers[n].Digest.String()),
			DiffID:     pipeline.Digest(i.config.RootFS.DiffIDs[n].String()),
			Size:       size,
			Compressed: i.manifest.Layers[n].Size,
			CreatedBy:  by[n],
		}
		h.Layers = append(h.Layers, layer)
		h.Size += layer.Size
		h.Compressed += layer.Compressed
	}
	return h, nil
}

func healthcheck(c *v1.HealthConfig) bool {
	return c != nil && len(c.Test) > 0 && c.Test[0] != "" && !strings.EqualFold(c.Test[0], "NONE")
}

// createdBy returns what made each layer. A history that has not as many entries
// that made one is of no use: any of them could be meant.
func createdBy(history []v1.History, layers int) []string {
	var out []string
	for _, h := range history {
		if !h.EmptyLayer {
			out = append(out, cleanHistory(h.CreatedBy))
		}
	}
	if len(out) != layers {
		return make([]string, layers)
	}
	return out
}

// cleanHistory leaves out what builders put around a command, and secrets.
func cleanHistory(s string) string {
	s = maskSecrets(s)
	s = strings.TrimPrefix(s, "/bin/sh -c #(nop) ")
	s = strings.TrimSuffix(s, "# buildkit")
	return printable(strings.TrimSpace(s), maxCreatedBy)
}

// printable replaces what would not be shown as it is, and bounds the length in
// characters. Paths, labels and histories are what the image's author likes.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsGraphic(r), unicode.Is(unicode.Bidi_Control, r):
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
	if r := []rune(s); len(r) > limit {
		return string(r[:limit]) + "…"
	}
	return s
}
